"""What the command does before the first worker starts and after the last one has ended. No Ray."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import pretrain
from jobs.checkpoints.store import Checkpoint, write_checkpoint, write_journal
from jobs.core.config import load_config
from jobs.core.errors import TrainingStoppedError, UserError
from jobs.training import driver as training
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from pipeline.shards.reader import PreparedSet
from pipeline.storage.files import StorageError
from tests.support.run_output import journal_lines
from tests.support.small_set import small_prepared_set

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

    def trained(_job: Any, token: Any, *_: Any) -> Any:
        write_journal(token.output, STEPS, 1, "".join(json.dumps(line) + "\n" for line in journal_lines(STEPS)))
        write_checkpoint(token.output, Checkpoint(STEPS, 4 * STEPS, weights, {}))
        return token

    def failing(uri: str, content: bytes) -> None:
        if uri.endswith(name) and not ended:
            raise StorageError(uri, "503 slow down", "try again")
        real(uri, content)

    monkeypatch.setattr(training, "connect", lambda: None)
    monkeypatch.setattr(training, "has_gpus", lambda: False)
    monkeypatch.setattr(training, "node_addresses", lambda: {"127.0.0.1"})
    monkeypatch.setattr(training, "with_decoders", lambda job, gpus: job)
    monkeypatch.setattr(training, "check_capacity", lambda *_: None)
    monkeypatch.setattr(training, "node_metrics", lambda _run: nullcontext())
    monkeypatch.setattr(training, "train", trained)
    monkeypatch.setattr(training, "write_bytes", failing)
    monkeypatch.setattr(training.Run, "finish", lambda _run, status="FINISHED": ended.append(status))
    with pytest.raises(TrainingStoppedError, match=r"503 slow down; .*the checkpoints are kept: run the same command"):
        pretrain.run(asked)
    assert ended == ["FAILED"]
    assert pretrain.run(asked)["steps"] == STEPS
    assert ended == ["FAILED", "FINISHED"]
