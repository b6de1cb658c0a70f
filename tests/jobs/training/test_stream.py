"""How many decoders a run takes; the stream itself is tested by the runs of `test_driver.py`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.core.config import load_config
from jobs.training import stream
from jobs.training.job import TrainingJob
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from jobs.training.stream import decoders_wanted, views_per_gpu_second, with_decoders
from pipeline.shards.reader import PreparedSet


def job(*keys: str) -> TrainingJob:
    keys = ("data=d", "output=o", "steps=4", "epochs=null", "workers=2", *keys)
    config = load_config(PretrainConfig, "pretrain", ["k400_base", *keys])
    return TrainingJob("pretrain", "k", config, PretrainPhase(config), PreparedSet("d", 1, "d", (), (), {}), 4, 0, 1)


def test_auto_follows_from_what_the_gpus_want(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = {"CPU": 64.0}
    monkeypatch.setattr(stream.ray, "cluster_resources", lambda: cpus)
    assert job().config.decode_actors == "auto"
    step = SimpleNamespace(multiply_adds=lambda: 209_391_058_944)  # of k400_base; building it takes seconds
    rate = views_per_gpu_second(step.multiply_adds())
    assert 100 < rate < 400  # one A100 at 35 % utilisation
    monkeypatch.setattr(PretrainPhase, "build_step", lambda *_, **__: step)
    wanted = decoders_wanted(2, step.multiply_adds())
    assert wanted - 1 < 2 * rate * stream.DECODE_SECONDS_PER_VIEW <= wanted
    assert with_decoders(job(), gpus=True).config.decode_actors == wanted > 2
    assert with_decoders(job(), gpus=False).config.decode_actors == 2
    assert with_decoders(job("decode_actors=5"), gpus=True).config.decode_actors == 5
    cpus["CPU"] = 2.5  # a reader takes a quarter of one, a decoder three quarters
    assert with_decoders(job(), gpus=True).config.decode_actors == 3
    cpus["CPU"] = 3.0
    assert with_decoders(job(), gpus=False).config.decode_actors == 1
