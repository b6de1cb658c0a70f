"""What the command does before the first worker starts and after the last one has ended. No Ray."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import pretrain
from jobs.core.config import load_config
from jobs.core.errors import TrainingStoppedError, UserError
from jobs.training import driver as training
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from pipeline.shards.reader import PreparedSet
from pipeline.storage.files import StorageError
from tests.support.small_set import small_prepared_set
from tests.support.without_workers import without_workers

STEPS = 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return small_prepared_set(tmp_path_factory.mktemp("start"))


def config(prepared: PreparedSet, output: Path, *more: str) -> PretrainConfig:
    keys = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "global_batch=4",
            "micro_batch=4", "precision=fp32", "tracking.uri=none", f"steps={STEPS}", "picture_clips=0"]  # fmt: skip
    return load_config(PretrainConfig, "pretrain", [*keys, f"data={prepared.uri}", f"output={output}", *more])


def test_a_mistake_that_is_found_after_the_claim_leaves_the_output_free(prepared: PreparedSet, tmp_path: Path) -> None:
    asked = config(prepared, tmp_path / "run", "validation.best_by=knn_top1", "validation.knn_clips=0")
    with pytest.raises(UserError, match=r"^validation\.best_by=knn_top1: needs labelled training"):
        pretrain.run(asked)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_set_that_cannot_be_read_leaves_the_output_free(prepared: PreparedSet, tmp_path: Path) -> None:
    """Copied without its versions: the same command with a whole set is not refused."""
    (tmp_path / "copy").mkdir()
    shutil.copy(Path(prepared.uri) / "dataset.json", tmp_path / "copy")
    with pytest.raises(StorageError):
        pretrain.run(config(replace(prepared, uri=str(tmp_path / "copy")), tmp_path / "run"))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "curves.png"])
def test_storage_that_fails_after_the_last_step_is_no_mistake_of_the_user(
    name: str, prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(prepared, tmp_path / "run")
    weights = PretrainPhase(asked).build_step(load_init=False).model.state_dict()
    ended, real = list[str](), training.write_bytes

    def failing(uri: str, content: bytes) -> None:
        if uri.endswith(name) and not ended:
            raise StorageError(uri, "503 slow down", "try again")
        real(uri, content)

    without_workers(monkeypatch, lambda _job: weights)
    monkeypatch.setattr(training, "write_bytes", failing)
    monkeypatch.setattr(training.Run, "finish", lambda _run, status="FINISHED": ended.append(status))
    with pytest.raises(TrainingStoppedError, match=r"503 slow down; .*the checkpoints are kept: run the same command"):
        pretrain.run(asked)
    assert ended == ["FAILED"]
    assert pretrain.run(asked)["steps"] == STEPS
    assert ended == ["FAILED", "FINISHED"]
