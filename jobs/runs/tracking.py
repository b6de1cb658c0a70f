"""Tracking that cannot hurt: where runs are recorded, what each carries from the start, and how it ends there.

The sending itself, in the background, is in `jobs.runs.mlflow_sender`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from jobs.core.errors import StopRequestedError, UserError
from jobs.core.redaction import without_secrets
from jobs.runs.fencing import SupersededError
from jobs.runs.mlflow_limits import FAILURES, RUN_NAME_LENGTH
from jobs.runs.mlflow_sender import Run as Run
from jobs.runs.mlflow_store import tracking_client_for
from jobs.runs.source_tree import source_tags
from jobs.runs.sqlite_uri import database_file, sqlite_uri
from jobs.runs.tracking_config import TrackingConfig
from pipeline.shards.reader import PreparedSet
from pipeline.storage.errors import first_line
from pipeline.storage.files import absolute, is_local, local_path

OUTPUT_TAG = "output"
COMMAND_TAG = "command"
DIGEST_LENGTH = 36  # MLflow's limit
PARENT_RUN_VARIABLE = "MLFLOW_PARENT_RUN_ID"  # set by `jobs.sweep` for its children
URI_REQUIRED = (
    "tracking.uri: is required here; give tracking.uri=sqlite:////path/mlflow.db or http://host:port, or set "
    "MLFLOW_TRACKING_URI"
)


@dataclass(frozen=True)
class TrackingTarget:
    """Where runs are recorded, for commands that record none."""

    uri: str | None = None
    """MLflow tracking URI (`sqlite:////absolute/path.db`, `http://host:port`). Default: MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        TrackingConfig(self.uri)  # has the rules

    def client(self) -> MlflowClient:
        """A client for reading runs.

        Raises:
            UserError: no tracking URI is known, or its database does not exist.
        """
        refuse_new_database(tracking_uri(TrackingConfig(uri=self.uri), output=None))
        return tracking_client(TrackingConfig(uri=self.uri), output=None)


def tracking_uri(config: TrackingConfig, output: str | None) -> str | None:
    """The resolved tracking URI; None when nothing is to be recorded."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri == "none":
        return None
    if uri:
        return uri
    if output and is_local(output):
        folder = (local_path(output) or Path()).absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        return sqlite_uri(folder / "mlflow.db")
    return None


def refuse_new_database(uri: str | None) -> None:
    """Where runs or models are only read: MLflow would create an empty database of a mistyped path.

    Raises:
        UserError: a SQLite file that does not exist.
    """
    database = database_file(uri) if uri else None
    if database is not None and not database.exists():
        raise UserError(f"tracking.uri={uri}: no such database; give the one that runs were recorded in")


def tracking_client(config: TrackingConfig, output: str | None) -> MlflowClient:
    """A client with short time-outs for reading runs (compare, sync).

    Raises:
        UserError: no tracking URI can be derived, or nothing can be opened there.
    """
    uri = tracking_uri(config, output)
    if uri is None:
        raise UserError(URI_REQUIRED)
    try:
        return tracking_client_for(uri)
    except FAILURES as error:
        raise UserError(f"tracking.uri={uri}: cannot be opened: {first_line(error)}; check it") from error


def start_run(
    config: TrackingConfig,
    *,
    command: str,
    run_key: str,
    output: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str | None] | None = None,
    prepared: PreparedSet | None = None,
    resumes: bool = True,
    source: Mapping[str, str] | None = None,
) -> Run:
    """Open the MLflow run of ``run_key``: created the first time, found again after a restart.

    Args:
        command: name of the command; part of the run's name and a tag of its own.
        run_key: the run's own key from `jobs.runs.claim.claim_output`.
        output: the run's output; recorded absolutely.
        params: resolved configuration, recorded as dotted parameters.
        tags: links to other runs (``pretrain_run_id``, ``finetune_run_id``) and the like.
        prepared: the data, recorded as a dataset of the run and as tags.
        resumes: whether the run, if it is found, runs again; otherwise its final status stays.
        source: tags of the source tree that made the run; default: `source_tags` of this one.
    """
    uri = absolute(output)
    basics = {
        COMMAND_TAG: command,
        OUTPUT_TAG: uri,
        "mlflow.runName": f"{command} {uri.rstrip('/').split('/')[-1]}"[:RUN_NAME_LENGTH],
        **(source_tags() if source is None else source),
        **({MLFLOW_PARENT_RUN_ID: parent} if (parent := os.environ.get(PARENT_RUN_VARIABLE)) else {}),
    }
    run = Run(tracking_uri(config, output), config.experiment, run_key, basics, resumes=resumes)
    if tags:
        run.set_tags(tags)
    if params:
        run.log_params(params)
    if prepared:
        run.set_tags(data_tags(prepared))
        run.log_dataset(data_entity(prepared.uri, prepared.version, prepared.digest), command)
    return run


def data_tags(prepared: PreparedSet) -> dict[str, str]:
    """Where a prepared set is, which version, and the digest of its content."""
    return {"data": prepared.uri, "data_digest": prepared.digest, "data_version": str(prepared.version)}


def data_entity(uri: str, version: int, digest: str) -> MetaDataset:
    """A version of a prepared set as MLflow's dataset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two classes of MLflow's claim local paths; both mean the same
        source = resolve_dataset_source(without_secrets(uri))
    return MetaDataset(
        source, name=f"{uri.rstrip('/').split('/')[-1]} version {version}", digest=digest[:DIGEST_LENGTH]
    )


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Mark the run KILLED when it stops on request and FAILED when it raises; the error propagates.

    A run whose output was taken over is left as it is: the later start records how it ends.
    """
    try:
        yield
    except SupersededError:
        run.leave()
        raise
    except StopRequestedError:
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
