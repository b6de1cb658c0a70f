"""`init=models:/NAME@ALIAS` or `models:/NAME/VERSION`: weights that `jobs.register` put into the MLflow registry.

Only the driver talks to the registry. It downloads the file; the copy that workers read is kept under `output`, named
by its content, so that an alias that moves changes nothing there.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from jobs.core.cli import echo
from jobs.core.errors import UserError
from jobs.core.holdings import is_registered
from jobs.core.init_source import WEIGHTS
from jobs.runs.mlflow_limits import FAILURES
from jobs.runs.mlflow_store import refuse_other_host
from jobs.runs.tracking import refuse_new_database, tracking_client, tracking_uri
from jobs.runs.tracking_config import TrackingConfig
from pipeline.storage.errors import first_line
from pipeline.storage.files import join

IN_THE_MODEL = f"artifacts/{WEIGHTS}"
NAMED = re.compile(r"models:/(?P<name>[^/:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d{1,9}))")
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
SHOWN = 12
REQUEST_TIMEOUT, DOWNLOAD_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", 120  # a server fetches the whole file first


@contextmanager
def initial_file(init: str, tracking: TrackingConfig, output: str | None) -> Iterator[str]:
    """A path or URI that this process can read: a temporary copy of registered weights, any other ``init`` as it is.

    Raises:
        UserError: no such model, alias or version, none of `jobs.register`, or MLflow does not answer.
    """
    if not is_registered(init):
        yield init
        return
    refuse_new_database(tracking_uri(tracking, output))
    client = tracking_client(tracking, output)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = _fetch(client, init, folder)
        except FAILURES as error:
            raise UserError(
                f"tracking.uri={client.tracking_uri}: does not give init={init}: {first_line(error)}; check the "
                "server and run the same command again"
            ) from error
        yield str(file)


def _fetch(client: MlflowClient, init: str, folder: str) -> Path:
    named = NAMED.fullmatch(init)
    if named is None:
        raise UserError(f"init={init}: must be models:/NAME@ALIAS or models:/NAME/VERSION; write it so")
    name, version = named["name"], _version(client, init, named)
    model = client.get_model_version_download_uri(name, version)
    refuse_other_host(client, model)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _long_timeout():
        stored = mlflow.artifacts.list_artifacts(join(model, "artifacts"), tracking_uri=client.tracking_uri)
        if IN_THE_MODEL not in {entry.path for entry in stored}:
            raise UserError(
                f"init={init}: version {version} has no {IN_THE_MODEL}, which `python -m jobs.register` stores; give a "
                "model that it registered, or a weights file"
            )
        echo(f"init={init} is version {version} of {name}")
        uri = join(model, IN_THE_MODEL)
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=client.tracking_uri))


def _version(client: MlflowClient, init: str, named: re.Match[str]) -> str:
    """The number of the version that is meant."""
    try:
        if named["alias"]:
            return str(client.get_model_version_by_alias(named["name"], named["alias"]).version)
        return str(client.get_model_version(named["name"], named["version"]).version)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        raise UserError(
            f"init={init}: {first_line(error)} at {client.tracking_uri}; {_existing(client, named['name'])}"
        ) from error


def _existing(client: MlflowClient, name: str) -> str:
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        return f"give one of the existing models: {', '.join(list(models)[:SHOWN]) or 'none'}"
    aliases = [f"@{alias}" for alias in models[name].aliases]
    newest = [f"/{version.version} (the newest)" for version in models[name].latest_versions]
    return f"give one of models:/{name}...: {', '.join([*aliases[:SHOWN], *newest])}"


@contextmanager
def _long_timeout() -> Iterator[None]:
    """Longer time-outs than those of tracking, for one large download."""
    former = os.environ[REQUEST_TIMEOUT]
    os.environ[REQUEST_TIMEOUT] = str(max(int(former), DOWNLOAD_SECONDS))
    try:
        yield
    finally:
        os.environ[REQUEST_TIMEOUT] = former
