"""Tracking that cannot hurt: MLflow is told in the background and may be down at any time.

The truth of a run lies under its ``output`` (journal, report). A `Run` hands everything meant for MLflow to one
background thread; the caller never waits for a server, except for `finish`, which waits a bounded time. What a
dead server missed is sent later by ``python -m jobs.sync``.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from jobs.config import flatten
from jobs.errors import StopRequestedError, UserError
from pipeline import absolute, is_local

logger = logging.getLogger(__name__)

METRICS_PER_REQUEST = 1000  # limits of MLflow's log_batch
PARAMS_PER_REQUEST = 100
PARAM_LENGTH = 6000
SERIES = ("loss", "learning_rate", "clips_per_second", "data_wait_seconds")  # at every step of a training run
RUN_KEY_TAG = "run_key"
OUTPUT_TAG = "output"
PROGRAM_TAG = "program"
FINISH_SECONDS = 20.0
# Trying again would not help: for example a parameter that the run has with another value.
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED")


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow tracking URI (`sqlite:////absolute/path.db`, `http://host:port`). Default: MLFLOW_TRACKING_URI, else
    `mlflow.db` in the folder that holds `output`; `none` records nothing beyond `output` itself."""
    experiment: str = "hiera-video"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        if self.uri and self.uri.startswith("sqlite:///") and not self.uri.startswith("sqlite:////"):
            raise ValueError(
                f"uri={self.uri}: a relative SQLite path means another file in every worker's directory; "
                "write sqlite:////absolute/path.db"
            )


def tracking_uri(config: TrackingConfig, output: str | None) -> str | None:
    """The resolved tracking URI; None when nothing is to be recorded."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri == "none":
        return None
    if uri:
        return uri
    if output and is_local(output):
        folder = Path(absolute(output)).parent
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}"
    return None


def tracking_client(config: TrackingConfig, output: str | None) -> MlflowClient:
    """A client with short time-outs for reading runs (compare, sync).

    Raises:
        UserError: no tracking URI can be derived.
    """
    uri = tracking_uri(config, output)
    if uri is None:
        raise UserError(
            "tracking.uri: is required here; give tracking.uri=sqlite:////path/mlflow.db or http://host:port, "
            "or set MLFLOW_TRACKING_URI"
        )
    return _client(uri)


class Run:
    """One MLflow run, found or created by its own key and fed by a background thread.

    Every method returns at once. Failures are retried with growing pauses and told once; they never raise.
    """

    def __init__(self, uri: str | None, experiment: str, run_key: str, tags: Mapping[str, str]) -> None:
        self.run_key = run_key
        self.run_id: str | None = None
        self._uri, self._experiment, self._tags = uri, experiment, dict(tags)
        self._outbox: queue.Queue[Callable[[MlflowClient, str], None] | None] = queue.Queue()
        self._found = threading.Event()
        self._closing_at = math.inf
        self._known_until = -1
        self._told = False
        self._thread = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        if uri is not None:
            self._thread.start()

    def wait_for_id(self, seconds: float) -> str | None:
        """The MLflow run id, waiting at most ``seconds`` for the server; None when it does not answer."""
        if self._uri is not None:
            self._found.wait(seconds)
        return self.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record a (nested) configuration as dotted parameters."""
        entries = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(dict(params)).items()]
        for batch in _batches(entries, PARAMS_PER_REQUEST):
            self._post(lambda client, run_id, batch=batch: client.log_batch(run_id, params=batch))  # type: ignore[misc]

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags; those with value None are left out."""
        entries = [RunTag(key, str(value)) for key, value in tags.items() if value is not None]
        self._post(lambda client, run_id: client.log_batch(run_id, tags=entries))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record finite numbers."""
        entries = _entries(metrics, step)
        self._post(lambda client, run_id: client.log_batch(run_id, metrics=entries))

    def log_series(self, entries: Sequence[Metric]) -> None:
        """Record steps of the training series, leaving out those that the run has already.

        A restarted run repeats the steps since its checkpoint; MLflow would keep both values.
        """
        for batch in _batches(entries, METRICS_PER_REQUEST):
            self._post(lambda client, run_id, batch=batch: self._send_new(client, run_id, batch))  # type: ignore[misc]

    def _send_new(self, client: MlflowClient, run_id: str, entries: Sequence[Metric]) -> None:
        new = [entry for entry in entries if entry.step > self._known_until]
        if new:
            client.log_batch(run_id, metrics=new)

    def log_artifact(self, local_path: str | Path, folder: str | None = None) -> None:
        """Upload one local file."""
        self._post(lambda client, run_id: client.log_artifact(run_id, str(local_path), folder))

    def finish(self, status: str = "FINISHED", wait_seconds: float = FINISH_SECONDS) -> bool:
        """End the run and wait a bounded time for the sender. Returns whether everything was sent."""
        if self._uri is None:
            return True
        self._post(lambda client, run_id: client.set_terminated(run_id, status))
        return self.drain(wait_seconds)

    def drain(self, wait_seconds: float = FINISH_SECONDS) -> bool:
        """Close the outbox and wait a bounded time until it is empty, leaving the run open."""
        if self._uri is None:
            return True
        self._closing_at = time.monotonic() + wait_seconds
        self._outbox.put(None)
        self._thread.join(wait_seconds + 1)
        sent = not self._thread.is_alive() and self._outbox.empty()
        if not sent:
            logger.warning("MLflow at %s missed a part of this run; send it with `python -m jobs.sync`", self._uri)
        return sent

    def _post(self, message: Callable[[MlflowClient, str], None]) -> None:
        if self._uri is not None:
            self._outbox.put(message)

    def _send_all(self) -> None:
        assert self._uri is not None
        client = _client(self._uri)
        run_id = self._retry(lambda: _find_or_create(client, self._experiment, self.run_key, self._tags))
        if not isinstance(run_id, str):
            return
        last_step = self._retry(lambda: _last_step(client, run_id))
        self._known_until = last_step if isinstance(last_step, int) and last_step > 0 else -1
        self.run_id = run_id
        self._found.set()
        while (message := self._outbox.get()) is not None:
            if self._retry(lambda message=message: message(client, run_id) or True) is None:  # type: ignore[misc]
                self._outbox.put(message)  # keeps `drain` from reporting success
                return

    def _tell_once(self, error: Exception) -> None:
        if not self._told:
            logger.warning("MLflow at %s does not answer, will go on trying: %s", self._uri, str(error)[:300])
        self._told = True

    def _retry(self, call: Callable[[], Any]) -> Any:
        """Call until it succeeds; the error if MLflow refuses for good, None once the closing time has passed."""
        pause_seconds = 0.5
        while True:
            try:
                return call()
            except (MlflowException, OSError) as error:
                if getattr(error, "error_code", None) in REFUSALS:
                    logger.warning("MLflow at %s refused an entry, which is left out: %s", self._uri, str(error)[:300])
                    return error
                self._tell_once(error)
            if time.monotonic() + pause_seconds > self._closing_at:
                return None
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, 30.0)


def start_run(
    config: TrackingConfig,
    *,
    program: str,
    run_key: str,
    output: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str | None] | None = None,
) -> Run:
    """Open the MLflow run of ``run_key``: created the first time, found again after a restart.

    Args:
        program: name of the program; part of the run's name and a tag of its own.
        run_key: the run's own key from `jobs.output.claim_output`.
        output: the run's output; recorded absolutely.
        params: resolved configuration, recorded as dotted parameters.
        tags: links to other runs (``pretrain_run_id``, ``finetune_run_id``, ``data_digest``) and the like.
    """
    place = absolute(output)
    basics = {
        PROGRAM_TAG: program,
        OUTPUT_TAG: place,
        "mlflow.runName": f"{program} {place.rstrip('/').split('/')[-1]}",
    }
    revision = git_revision()
    if revision:
        basics["mlflow.source.git.commit"] = revision
    run = Run(tracking_uri(config, output), config.experiment, run_key, basics)
    if tags:
        run.set_tags(tags)
    if params:
        run.log_params(params)
    return run


def series_entries(journal_line: Mapping[str, Any]) -> list[Metric]:
    """The metrics of one journal line, at its own step and time."""
    milliseconds = int(journal_line["unix_seconds"] * 1000)
    return [
        Metric(key, journal_line[key], milliseconds, journal_line["step"])
        for key in SERIES
        if math.isfinite(journal_line[key])
    ]


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Mark the run KILLED when it stops on request and FAILED when it raises; the error goes on."""
    try:
        yield
    except StopRequestedError:
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise


def git_revision() -> str | None:
    """The commit of the source tree that runs, when it is a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _find_or_create(client: MlflowClient, experiment: str, run_key: str, tags: Mapping[str, str]) -> str:
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else _create_experiment(client, experiment)
    runs = client.search_runs([experiment_id], filter_string=f"tags.{RUN_KEY_TAG} = '{run_key}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)
    return str(client.create_run(experiment_id, tags={**tags, RUN_KEY_TAG: run_key}).info.run_id)


def _last_step(client: MlflowClient, run_id: str) -> int:
    """The newest step of the training series; 0 for a new run."""
    steps = [entry.step for entry in client.get_metric_history(run_id, SERIES[0])]
    return max(steps, default=0)


def _create_experiment(client: MlflowClient, experiment: str) -> str:
    try:
        return str(client.create_experiment(experiment, artifact_location=_artifacts_beside(client.tracking_uri)))
    except MlflowException:  # another program was faster
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def _artifacts_beside(uri: str) -> str | None:
    """Artifacts of a SQLite store lie beside it (MLflow's default is the working directory); servers decide."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


def _client(uri: str) -> MlflowClient:
    for noisy in ("mlflow", "alembic"):  # they tell every table that they create
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # By default one request may retry for minutes; retries are this module's own (see `Run._retry`).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _entries(metrics: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step) for key, value in metrics.items() if math.isfinite(value)]


def _batches(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(entries)
    while batch := list(islice(remaining, size)):
        yield batch
