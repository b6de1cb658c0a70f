"""Comparing runs that MLflow really holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.compare import CompareConfig, run
from jobs.core.cli import replace
from jobs.core.errors import UserError
from jobs.runs.tracking import TrackingTarget

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    """Pretraining → fine-tuning (two learning rates) → evaluation and tagging."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("motion")
    pretrain = _record(client, experiment, "pretrain", {"global_batch": "32"}, {"loss": 0.5}, {})
    for rate, top1 in (("8e-4", 0.7), ("4e-4", 0.9)):
        links = {"pretrain_run_id": pretrain}
        tune = _record(client, experiment, "finetune", {"learning_rate": rate}, {"validation_top1": top1}, links)
        links["finetune_run_id"] = tune
        _record(client, experiment, "evaluate", {"output": rate}, {"mean_class_accuracy": top1 / 2}, links)
        _record(client, experiment, "tag", {}, {"windows_per_second": 3.0}, links)
    return CompareConfig(experiment="motion", tracking=TrackingTarget(uri))


def _record(
    client: MlflowClient,
    experiment: str,
    command: str,
    params: dict[str, str],
    metrics: dict[str, float],
    links: dict[str, str],
) -> str:
    run_id = client.create_run(experiment, tags={"command": command, **links}, run_name=f"{command} run").info.run_id
    for key, value in params.items():
        client.log_param(run_id, key, value)
    for key, number in metrics.items():
        client.log_metric(run_id, key, number, step=1)
    client.set_terminated(run_id)
    return str(run_id)


def test_tables_links_and_the_best_run(config: CompareConfig, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(config)
    text = capsys.readouterr().out
    assert report["tracking.uri"] == config.tracking.uri
    assert report["runs"] == 7
    assert report["best finetune"].endswith("(validation_top1 0.9)")
    assert f"★ {report['best finetune'][:8]}" in text
    tree = text[text.index("which run was made from which") :].splitlines()[1:8]
    names = [next(name for name in ("pretrain", "finetune", "evaluate", "tag") if name in line) for line in tree]
    assert names == ["pretrain", *["finetune", "evaluate", "tag"] * 2]
    indents = [line.index(name) for name, line in zip(names, tree, strict=True)]
    assert indents[0] < indents[1] < indents[2] == indents[3]
    assert indents[1] == indents[4]


def test_the_page_and_its_picture(config: CompareConfig, tmp_path: Path) -> None:
    report = run(replace(config, output=str(tmp_path)))
    assert report["compare.html"] == str(tmp_path / "compare.html")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "compare.html").read_text()
    assert "data:image/png;base64,iVBOR" in text
    assert "learning_rate" in text
    assert "★" in text


def test_the_tables_are_printed_before_anything_is_drawn(
    config: CompareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> bytes:
        raise RuntimeError("no page")

    monkeypatch.setattr("jobs.compare.page", fails)
    with pytest.raises(RuntimeError, match="no page"):
        run(replace(config, output=str(tmp_path)))
    assert "★" in capsys.readouterr().out


def test_a_metric_that_ranks_nothing_is_a_mistake(config: CompareConfig) -> None:
    with pytest.raises(UserError, match=r"^best_by=topp1: no run has such a metric"):
        run(replace(config, best_by="topp1"))
