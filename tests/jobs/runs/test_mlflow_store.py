"""The password goes to the tracking server alone, whatever its content names."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from jobs.core.errors import UserError
from jobs.runs.mlflow_sender import Run
from jobs.runs.mlflow_store import refuse_other_host, tracking_client_for, upload
from jobs.runs.tracking_config import TrackingConfig
from jobs.weights.registry import initial_file
from tests.support.listener import Listener, listener


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def store_of_stranger(folder: Path, stranger: Listener) -> MlflowClient:
    """A database whose experiment keeps its artifacts on the stranger's server."""
    client = tracking_client_for(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("planted", artifact_location=f"{stranger.uri}/artifacts")
    return client


def test_artifacts_of_another_host_are_refused(tmp_path: Path) -> None:
    with listener() as stranger:
        client = store_of_stranger(tmp_path, stranger)
        run = Run(client.tracking_uri, "planted", "key", {})
        run_id = str(run.wait_for_id(60))
        (tmp_path / "page.html").write_text("x")
        run.log_artifact(tmp_path / "page.html")
        assert not run.finish(wait_seconds=60)
        assert run.refused == ("page.html",)
        assert not stranger.paths
        # What happens without the check: MLflow itself sends the password.
        client.log_artifact(run_id, str(tmp_path / "page.html"))
        assert stranger.authorizations


def test_registered_weights_of_another_host_are_refused(tmp_path: Path) -> None:
    with listener() as stranger:
        client = store_of_stranger(tmp_path, stranger)
        client.create_registered_model("planted")
        client.create_model_version("planted", source=f"{stranger.uri}/artifacts/model")
        with (
            pytest.raises(UserError, match="the password is for that one alone"),
            initial_file("models:/planted/1", TrackingConfig(client.tracking_uri), None),
        ):
            pass
        assert not stranger.paths


def test_a_redirect_takes_no_password_along() -> None:
    with listener() as stranger, listener(redirect_to=stranger.uri) as server:
        tracking_client_for(server.uri).search_experiments()
        assert server.authorizations
        assert stranger.paths
        assert not stranger.authorizations


@pytest.mark.parametrize(
    "artifacts", ["mlflow-artifacts:/1/x", "http://127.0.0.1:9/x", "mlflow-artifacts://127.0.0.1:9/x", "s3://b/x"]
)
def test_the_servers_own_artifacts_are_taken(artifacts: str) -> None:
    refuse_other_host(MlflowClient("http://me:pw@127.0.0.1:9"), artifacts)


@pytest.mark.parametrize(
    "artifacts", ["http://127.0.0.1:10/x", "https://h/x", "mlflow-artifacts://h/x", "http://127.0.0.1:9@h/x"]
)
def test_those_of_others_are_not(artifacts: str) -> None:
    with pytest.raises(MlflowException, match="the password is for that one alone"):
        refuse_other_host(MlflowClient("http://127.0.0.1:9"), artifacts)


def test_an_artifact_is_stored(tmp_path: Path) -> None:
    client = tracking_client_for(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("own", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    upload(client, run_id, b"x", "page.html", "pages")
    assert [entry.path for entry in client.list_artifacts(run_id, "pages")] == ["pages/page.html"]
