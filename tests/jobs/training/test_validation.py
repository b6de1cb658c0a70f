"""Measured while training: the same figures on any rank, the training untouched, the best weights kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from hiera_video.weights.checkpoint_files import load_model, read_metadata
from jobs import pretrain
from jobs.checkpoints.store import measured_steps, read_checkpoint
from jobs.core.errors import UserError
from jobs.export import ExportConfig
from jobs.export import run as export
from jobs.training.config import ProbedValidationConfig, ValidationConfig
from jobs.training.job import check_validation
from pipeline.shards.reader import PreparedSet
from tests.support.golden_losses import GLOBAL_BATCH, TRAINING_CLIPS, pretrain_config, write_tiny_set
from tests.support.small_set import small_prepared_set

MEASURED = [4, 8, 10]


KEYS = [f"validation.every_epochs={4 * GLOBAL_BATCH / TRAINING_CLIPS}", "validation.knn_clips=8"]  # every 4 steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    data = write_tiny_set(tmp_path_factory.mktemp("held-out"))
    pinned = Path(data) / "versions" / "0001.json"
    pinned.parent.mkdir(exist_ok=True)
    pinned.write_bytes((Path(data) / "dataset.json").read_bytes())
    return data


@pytest.fixture(scope="module")
def measured(ray_cluster: None, data: str) -> Path:
    """A run of two workers, measured every fourth step."""
    output = Path(data).parent / "measured"
    pretrain.run(pretrain_config(data, output, *KEYS))
    return output


def journal(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def figures(output: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line["validation"] for line in journal(output) if "validation" in line}


@pytest.mark.slow  # two more runs than fit into `make test`
@pytest.mark.timeout(600)
def test_training_is_untouched_and_the_number_of_workers_too(measured: Path, data: str) -> None:
    unmeasured, alone = measured.parent / "unmeasured", measured.parent / "alone"
    pretrain.run(pretrain_config(data, unmeasured, "validation.clips=0"))
    assert [line["loss"] for line in journal(measured)] == [line["loss"] for line in journal(unmeasured)]
    assert not any("validation" in line for line in journal(unmeasured))
    assert not (unmeasured / "best.safetensors").exists()
    pretrain.run(pretrain_config(data, alone, *KEYS, "workers=1"))
    two, one = figures(measured), figures(alone)
    assert [two[step]["loss"] for step in MEASURED] == pytest.approx([one[step]["loss"] for step in MEASURED], rel=1e-5)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_journal_has_the_figures(measured: Path) -> None:
    found = figures(measured)
    assert list(found) == MEASURED
    assert all(0 <= found[step]["knn_top1"] <= 1 and found[step]["seconds"] > 0 for step in MEASURED)
    assert found[4]["loss"] != found[10]["loss"]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_best_checkpoint_is_kept_and_exported(measured: Path, tmp_path: Path) -> None:
    output = measured
    losses = {step: found["loss"] for step, found in figures(output).items()}
    best = min(losses, key=lambda step: losses[step])
    assert measured_steps(str(output))[0] == (losses[best], best)
    checkpoint = read_checkpoint(str(output), best)
    assert checkpoint is not None
    assert read_metadata(output / "best.safetensors")["step"] == str(best)
    ours = load_model(output / "best.safetensors").state_dict()
    assert all(torch.equal(ours[name], checkpoint.weights[name]) for name in ours)
    report = export(ExportConfig(init=str(output), output=str(tmp_path / "e.safetensors"), weights="best"))
    assert report["step"] == str(best)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_mlflow_has_figures_pictures_data_and_every_node(measured: Path) -> None:
    output = measured
    for step in MEASURED:
        assert (output / "pictures" / f"step-{step:08d}.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(tracking_uri=f"sqlite:///{output.parent / 'mlflow.db'}")
    run = client.get_run(read_metadata(output / "model.safetensors")["run_id"])
    for key in ("validation_loss", "validation_knn_top1"):
        assert [entry.step for entry in client.get_metric_history(run.info.run_id, key)] == MEASURED
    assert len(client.list_artifacts(run.info.run_id, "pictures")) == len(MEASURED)
    assert [given.dataset.digest for given in run.inputs.dataset_inputs] == ["tiny"]
    assert any(key.startswith("system/") and key.endswith("memory_percent") for key in run.data.metrics)


def test_when_it_is_due() -> None:
    assert ValidationConfig(every_epochs=2).steps_between(steps_per_epoch=10) == 20
    assert ValidationConfig(every_epochs=0.001).steps_between(steps_per_epoch=10) == 1
    for wrong in ({"clips": -1}, {"knn_clips": -1}, {"every_epochs": 0.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
            ProbedValidationConfig(**wrong)  # type: ignore[arg-type]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return small_prepared_set(tmp_path)


def test_what_cannot_be_measured_is_reported_or_refused(
    prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_validation(ValidationConfig(), prepared, labelled_only=False)
    check_validation(ProbedValidationConfig(best_by="knn_top1"), prepared, labelled_only=False)
    assert not capsys.readouterr().err
    with pytest.raises(
        UserError,
        match=r"validation\.best_by=knn_top1: needs labelled training and validation clips.*knn_clips=0 above 0",
    ):
        check_validation(ProbedValidationConfig(best_by="knn_top1", knn_clips=0), prepared, labelled_only=False)
    monkeypatch.setattr(PreparedSet, "num_clips", lambda *_, **__: 0)
    check_validation(ValidationConfig(clips=0), prepared, labelled_only=False)
    assert not capsys.readouterr().err
    check_validation(ValidationConfig(), prepared, labelled_only=False)
    assert "nothing is measured, and no checkpoint is the best" in capsys.readouterr().err
