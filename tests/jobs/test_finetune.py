"""Mistakes that fine-tuning finds before any worker starts. No Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.finetune import run, warn_empty_classes
from jobs.training.steps.finetune import FinetuneConfig
from pipeline.shards.reader import PreparedSet
from tests.support.small_set import CLASSES, small_prepared_set

SMALL = ["k400_base", "model=hiera_test_8x64", "global_batch=4", "micro_batch=4",
         "precision=fp32", "tracking.uri=none"]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return small_prepared_set(tmp_path_factory.mktemp("start"))


def test_an_empty_class_is_reported_and_counted(prepared: PreparedSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert warn_empty_classes(prepared) == []
    assert "warning" not in capsys.readouterr().err
    longer = PreparedSet(**{**prepared.__dict__, "classes": (*CLASSES, "down", "still")})
    assert warn_empty_classes(longer) == ["down", "still"]
    assert "2 of 5 classes" in capsys.readouterr().err
    assert prepared.classes_without_clips("val") == ["left"]


def test_weights_of_another_preset_are_a_mistake_that_leaves_the_output_free(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    save_model(tmp_path / "demo.safetensors", create_model("mae_hiera_demo_16x96"))
    keys = [f"data={prepared.uri}", f"init={tmp_path / 'demo.safetensors'}", f"output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"^init=.*demo\.safetensors: .*shape"):
        run(load_config(FinetuneConfig, "finetune", [*SMALL, *keys]))
    assert not (tmp_path / "out" / "run.json").exists()
