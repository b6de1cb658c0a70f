"""The command line of plan."""

from __future__ import annotations

import pytest

from jobs.core.errors import UserError
from jobs.planning.request import job_config, read_arguments
from jobs.tagging.config import TagConfig
from jobs.training.steps.pretrain import PretrainConfig


def test_own_keys_are_taken_and_the_others_go_to_the_command() -> None:
    own = ["gpus=2", "gpu=A100", "host.cores=96", "clips=99"]
    request = read_arguments(["pretrain", "demo", *own, "epochs=3", "steps=null", "view.repeats=4"])
    assert (request.gpus, request.gpu, request.clips, request.host.cores) == (2, "A100", 99, 96)
    config = job_config(request, PretrainConfig)
    assert (config.epochs, config.view.repeats, config.workers) == (3, 4, 2)


def test_paths_need_not_be_given() -> None:
    assert job_config(read_arguments(["tag", "hop_seconds=1"]), TagConfig).hop_seconds == 1


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("", "no arguments: must be COMMAND"),
        ("pretrain demo extra", "must be COMMAND"),
        ("sweep demo", "job=sweep: must be one of prepare, pretrain"),
        ("pretrain demo gpus=0", "gpus=0: must be positive"),
        ("pretrain demo gpus=-8", "gpus=-8: must be positive"),
        ("pretrain demo gpus=many", "gpus=many: must be int"),
        ("pretrain demo clips=0", "clips=0: must be positive"),
        ("pretrain demo clip_seconds=0", "clip_seconds=0.0: must be positive"),
        ("pretrain demo host.cores=0", "host.cores=0: must be positive"),
        ("pretrain demo workers=8", "workers=8: is what gpus says; use gpus=8"),
        ("pretrain dmeo", "recipe=dmeo: no such recipe of pretrain; known: demo"),
        ("pretrain demo gpus=3", "gpus=3: must divide global_batch / micro_batch = 2; use one of 1, 2, or another"),
        ("pretrain demo epoch=3", "epoch=3: no such key"),
    ],
)
def test_mistakes(words: str, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        job_config(read_arguments(words.split()), PretrainConfig)
    assert rule in str(refused.value)
