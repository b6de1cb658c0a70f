"""Runs in MLflow: found again, with revision, recipe and data, and the way that they ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.core.errors import StopRequestedError, UserError
from jobs.runs.sqlite_uri import database_file
from jobs.runs.tracking import TrackingTarget, data_entity, recorded, start_run, tracking_uri
from jobs.runs.tracking_config import TrackingConfig
from tests.support.tracked_runs import NOBODY, recorded_run, started

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def test_a_run_carries_revision_recipe_and_data(store: str, tmp_path: Path) -> None:
    config = TrackingConfig(store, experiment="tests")
    params = {"model": "m", "optimizer": {"learning_rate": 8e-4}, "tracking": {"uri": NOBODY}}
    run = start_run(config, command="pretrain", run_key="facts", output=str(tmp_path), params=params)
    run.log_dataset(data_entity("s3://bucket/set", 3, "0123456789abcdef" * 4), "training")
    assert run.finish()
    found = recorded_run(store, "facts")
    assert found.info.status == "FINISHED"
    assert found.data.params == {
        "model": "m",
        "optimizer.learning_rate": "0.0008",
        "tracking.uri": "http://127.0.0.1:9",
    }
    assert len(found.data.tags["mlflow.source.git.commit"]) == 40
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("set version 3", ("0123456789abcdef" * 4)[:36])
    assert "s3://bucket/set" in given.dataset.source
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


@pytest.mark.parametrize(("error", "status"), [(StopRequestedError, "KILLED"), (OSError, "FAILED")])
def test_how_a_run_ended_is_told(store: str, error: type[Exception], status: str) -> None:
    run = started(store, status)
    with pytest.raises(error), recorded(run):
        raise error("so it ended")
    assert recorded_run(store, status).info.status == status


@pytest.mark.parametrize("folder", ["what? #1 100% per%41 ü&a=b"])
def test_any_output_path_has_its_store_beside_it(tmp_path: Path, folder: str) -> None:
    config, output = TrackingConfig(), tmp_path / folder / "tags"
    run = start_run(config, command="tag", run_key="k", output=str(output), params={"a": 1})
    (tmp_path / "page.html").write_text("x")
    run.log_artifact(tmp_path / "page.html")
    assert run.finish()
    assert {path.name for path in output.parent.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert {path.name for path in tmp_path.iterdir()} == {folder, "page.html"}
    uri = tracking_uri(config, str(output))
    assert uri is not None
    assert TrackingConfig(uri).uri == uri
    assert database_file(uri) == output.parent / "mlflow.db"
    assert MlflowClient(tracking_uri=uri).get_run(str(run.run_id)).data.params == {"a": "1"}
    assert tracking_uri(config, output.as_uri()) == uri


def test_reading_creates_no_database(tmp_path: Path) -> None:
    """Of a mistyped path MLflow would create an empty one."""
    with pytest.raises(UserError, match=rf"^tracking.uri=sqlite:///{tmp_path}/mistyped.db: no such database; give"):
        TrackingTarget(f"sqlite:///{tmp_path}/mistyped.db").client()
    assert not list(tmp_path.iterdir())
