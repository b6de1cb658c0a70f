"""An MLflow store as a run's sender uses it: the client, the experiment, the artifacts."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from jobs.runs.sqlite_uri import database_file

LOGGED_MODEL = "models:/m-"
WITH_PASSWORD = ("http", "https", "mlflow-artifacts")  # schemes of artifacts that are asked for with it


def tracking_client_for(uri: str) -> MlflowClient:
    """A client with short time-outs that retries nothing itself.

    Raises:
        MlflowException, SQLAlchemyError, OSError: the URI is none, or its database cannot be opened.
    """
    for noisy in ("mlflow", "alembic"):  # they log every table that they create
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # By default one request may retry for minutes; retries are the sender's (see `jobs.runs.mlflow_sender`).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # It would print the server's address past `jobs.core.redaction`.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is created where it is missing.

    Raises:
        MlflowException: it was deleted, or the server does not answer.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return _create_experiment(client, name)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise MlflowException.invalid_parameter_value(
            f"tracking.experiment={name}: is deleted; restore it (mlflow experiments restore --experiment-id "
            f"{found.experiment_id}) or give another name"
        )
    return str(found.experiment_id)


def _create_experiment(client: MlflowClient, name: str) -> str:
    try:
        return str(client.create_experiment(name, artifact_location=_artifacts_beside(client.tracking_uri)))
    except MlflowException:  # another job was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _artifacts_beside(uri: str) -> str | None:
    """Artifacts of a SQLite store lie beside it (MLflow's default is the working directory); servers decide."""
    path = database_file(uri)
    return None if path is None else (path.parent / "mlartifacts").as_uri()


def refuse_other_host(client: MlflowClient, artifact_uri: str) -> None:
    """MLflow sends its password to the host of an artifact URI, which anyone with write access to the store decides.

    Raises:
        MlflowException: it is an HTTP server of another host or port than the tracking server.
    """
    if artifact_uri.startswith(LOGGED_MODEL):
        artifact_uri = str(client.get_logged_model(artifact_uri.removeprefix("models:/")).artifact_location)
    target, own = (urlsplit(uri) for uri in (artifact_uri, client.tracking_uri))
    hosts = [part.netloc.rpartition("@")[2] for part in (target, own)]
    if target.scheme in WITH_PASSWORD and hosts[0] and hosts[0] != hosts[1]:
        raise MlflowException.invalid_parameter_value(
            f"its artifacts are on {hosts[0]}, the tracking server is {hosts[1] or 'a database'}; the password is for "
            "that one alone"
        )


def upload(client: MlflowClient, run_id: str, content: bytes, name: str, folder: str | None) -> None:
    """Store bytes as an artifact of a run.

    Raises:
        MlflowException: the run's artifacts are on a server of another host, or the store refuses them.
    """
    refuse_other_host(client, str(client.get_run(run_id).info.artifact_uri))
    with TemporaryDirectory() as parent:
        path = Path(parent) / name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), folder)
