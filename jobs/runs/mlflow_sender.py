"""One MLflow run, fed by a background thread that no caller ever waits for.

The authoritative record of a run is under its ``output`` (journal, report). A `Run` takes what is meant for MLflow and
returns at once; a dead, slow or hanging server costs nothing but memory up to a bound. What it missed is sent later
from the journal (`jobs.sync`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import posixpath
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3.exceptions
import botocore.exceptions
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from jobs.core.config import flatten
from jobs.core.redaction import public, without_secrets
from pipeline.storage.files import StorageError, read_bytes

logger = logging.getLogger(__name__)

METRICS_PER_REQUEST = 1000  # limits of MLflow's log_batch
PARAMS_PER_REQUEST = 100
PARAM_LENGTH = 6000
KEY_LENGTH = 250
PARAM_KEY = re.compile(r"[\w. :/-]+")
OTHER_PARAMS = "params.json"
REFUSED_SHOWN = 8
OTHER_VALUE = "Changing param values is not allowed"
SERIES = ("loss", "learning_rate", "clips_per_second", "data_wait_seconds", "model_flop_utilisation")
STEPS_KEPT = 50_000  # in memory while a server is dead; the journal has them all
SAMPLES_KEPT = 500  # two hours of the nodes' figures; nothing else keeps them
RUN_KEY_TAG = "run_key"
SECONDS_BETWEEN_SENDS = 2.0
FINISH_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 30.0
ARTIFACT_TRIES = 3
# A retry would not help: for example a parameter that the run has with another value.
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED")
FAILURES = (
    MlflowException,
    OSError,
    SQLAlchemyError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    boto3.exceptions.Boto3Error,
    StorageError,
)
Message = Callable[[MlflowClient, str], object]


class Run:
    """A run, found or created by its own key once the server answers.

    Every method returns at once, `finish` and `drain` within a bound. Failures are retried with growing pauses and
    logged once; they never raise.

    Args:
        resumes: whether an existing run runs again; otherwise its final status stays.
    """

    def __init__(
        self, uri: str | None, experiment: str, run_key: str, tags: Mapping[str, str], *, resumes: bool = True
    ) -> None:
        self.run_key = run_key
        self._resumes = resumes
        self.run_id: str | None = None
        self._uri, self._experiment, self._tags = uri, experiment, public(dict(tags))
        self._outbox: deque[Message] = deque()
        self._series: deque[list[Metric]] = deque(maxlen=STEPS_KEPT)
        self._samples: deque[list[Metric]] = deque(maxlen=SAMPLES_KEPT)
        self._known_steps: set[int] | None = None
        self._found, self._closing, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._left = threading.Event()
        self._closing_at = math.inf
        self._warned = False
        self._sent_all = uri is None
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        if uri is not None:
            self._thread.start()

    @property
    def refused(self) -> Sequence[str]:
        """Names of what MLflow refused so far."""
        return tuple(self._refused)

    def wait_for_id(self, seconds: float) -> str | None:
        """The MLflow run id, waiting at most ``seconds`` for the server; None when it does not answer."""
        if self._uri is not None:
            self._found.wait(seconds)
        return self.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record a (nested) configuration as dotted parameters.

        What MLflow does not take, keys with other characters and long values, becomes the artifact `OTHER_PARAMS`.
        """
        flat = flatten(public(dict(params)))
        other = {key: value for key, value in flat.items() if not _is_param(key, str(value))}
        entries = [Param(key, str(value)) for key, value in flat.items() if key not in other]
        for batch in _batches(entries, PARAMS_PER_REQUEST):
            self._post(self._each_or_all(batch, "params"))
        if other:
            content = json.dumps(other, indent=1, ensure_ascii=False, default=str).encode()
            self._post_artifact(lambda: content, OTHER_PARAMS, None)

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags; those with value None are left out."""
        entries = [RunTag(key, without_secrets(str(value))) for key, value in tags.items() if value is not None]
        self._post(self._each_or_all(entries, "tags"))

    def log_dataset(self, dataset: Any, context: str) -> None:
        """Record an `mlflow.data` dataset as an input of the run; ``context`` says what for."""
        tags = [InputTag("mlflow.data.context", context)]
        entry = DatasetInput(dataset._to_mlflow_entity(), tags)
        self._post(lambda client, run_id: client.log_inputs(run_id, datasets=[entry]))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record finite numbers, with the time of the call."""
        for batch in _batches(metric_entries(metrics, step, time.time()), METRICS_PER_REQUEST):
            self._post(self._each_or_all(batch, "metrics"))

    def log_sample(self, metrics: Mapping[str, float], step: int) -> None:
        """Record finite numbers of which there will be ever more; while a server is dead only the newest are kept."""
        if self._uri is not None:
            self._samples.append(metric_entries(metrics, step, time.time()))

    def log_missing_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record finite numbers that the run lacks (for a run that was recorded only in part)."""
        entries = metric_entries(metrics, 0, time.time())

        def send(client: MlflowClient, run_id: str) -> None:
            known = client.get_run(run_id).data.metrics
            client.log_batch(run_id, metrics=[entry for entry in entries if entry.key not in known])

        self._post(send)

    def log_steps(self, journal_lines: Iterable[Mapping[str, Any]]) -> None:
        """Record steps of a training run, those left out that the run has already.

        A restarted run repeats the steps since its checkpoint; MLflow would keep both values.
        """
        if self._uri is not None:
            self._series.extend(series_entries(line) for line in journal_lines)

    def fill_gaps(self, journal_lines: Sequence[Mapping[str, Any]]) -> None:
        """Record those steps of a whole journal that the run lacks when the sender reaches them."""

        def send(client: MlflowClient, run_id: str) -> None:
            known = _steps_of(client, run_id)
            missing = (series_entries(line) for line in journal_lines if line["step"] not in known)
            for batch in _whole_steps(missing):
                client.log_batch(run_id, metrics=batch)

        self._post(send)

    def log_artifact(self, local_path: str | Path, folder: str | None = None) -> None:
        """Upload one local file; dropped after a few failures, so that it delays nothing else."""
        content = Path(local_path).read_bytes()
        self._post_artifact(lambda: content, Path(local_path).name, folder)

    def log_stored_artifact(self, uri: str, folder: str | None = None) -> None:
        """Upload one file from where it is stored, read when the sender reaches it."""
        self._post_artifact(lambda: read_bytes(uri), uri.rpartition("/")[2], folder)

    def _each_or_all(self, entries: Sequence[Any], kind: str) -> Message:
        """Send entries in one request; if MLflow refuses it, each alone, so that one of them costs no other."""

        def send(client: MlflowClient, run_id: str) -> None:
            try:
                client.log_batch(run_id, **{kind: entries})
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                for entry in entries:
                    self._send_alone(client, run_id, entry, kind)

        return send

    def _send_alone(self, client: MlflowClient, run_id: str, entry: Any, kind: str) -> None:
        try:
            client.log_batch(run_id, **{kind: [entry]})
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            if OTHER_VALUE in str(error):  # of a key that may differ between starts: the first start's value stays
                self._warn(f"keeps the earlier value of {entry.key}: {error}")
            else:
                self._refuse(entry.key, error)

    def _refuse(self, name: str, error: object) -> None:
        """Remember by its name what MLflow does not have; `drain` reports it."""
        if name not in self._refused:
            self._refused.append(name)
            self._warn(f"refused {name}, which is left out: {error}")

    def _post_artifact(self, read: Callable[[], bytes], name: str, folder: str | None) -> None:
        retries = iter(range(1, ARTIFACT_TRIES))

        def send(client: MlflowClient, run_id: str) -> None:
            try:
                _upload(client, run_id, read(), name, folder)
            except FAILURES as error:
                if next(retries, None) is not None:
                    raise
                self._refuse(name, f"{error}; it stays under the run's output")

        self._post(send)

    def finish(self, status: str = "FINISHED", wait_seconds: float = FINISH_SECONDS) -> bool:
        """End the run and wait a bounded time for the sender. Returns whether everything was sent."""
        self._post(lambda client, run_id: client.set_terminated(run_id, status))
        return self.drain(wait_seconds)

    def drain(self, wait_seconds: float = FINISH_SECONDS) -> bool:
        """Wait a bounded time until everything is sent, and send nothing more; the run stays open.

        What MLflow refused counts as not sent, and is logged by name.
        """
        if self._uri is not None:
            self._closing_at = time.monotonic() + wait_seconds
            self._closing.set()
            self._wake.set()
            self._thread.join(wait_seconds + 1)
            if not self._sent_all:
                self._warn("missed a part of this run; `python -m jobs.sync output=...` sends it")
            if self._refused:
                names = ", ".join(self._refused[:REFUSED_SHOWN])
                self._warn(f"does not have {len(self._refused)} entries of this run, which it refused: {names}")
        return self._sent_all and not self._refused

    def leave(self) -> None:
        """Send nothing more, not even what is queued: the run belongs to another job now."""
        self._left.set()
        self._closing.set()
        self._wake.set()

    def refresh_known_steps(self) -> None:
        """Read again which steps the run has, before the next ones are sent: another job may have sent some."""
        self._known_steps = None

    def _post(self, message: Message) -> None:
        if self._uri is not None:
            self._outbox.append(message)

    def _send_all(self) -> None:
        assert self._uri is not None
        uri = self._uri
        client = self._retry(lambda: tracking_client_for(uri))
        if not isinstance(client, MlflowClient):
            return
        run_id = self._retry(lambda: self._find_or_create(client))
        if not isinstance(run_id, str):
            return
        self.run_id = run_id
        self._found.set()
        last_round = False
        while not last_round:
            last_round = self._closing.is_set()
            senders = (self._send_series, self._send_samples, self._send_messages)
            if not all(send(client, run_id) for send in senders):
                return
            self._wake.wait(SECONDS_BETWEEN_SENDS)
        self._sent_all = True

    def _find_or_create(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._experiment)
        experiment_id = found.experiment_id if found else _create_experiment(client, self._experiment)
        its_own = f"tags.{RUN_KEY_TAG} = '{self.run_key}'"
        runs = client.search_runs([experiment_id], filter_string=its_own, max_results=1)
        if not runs:
            return str(client.create_run(experiment_id, tags={**self._tags, RUN_KEY_TAG: self.run_key}).info.run_id)
        if self._resumes:
            client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)

    def _send_series(self, client: MlflowClient, run_id: str) -> bool:
        """Send the steps that wait; False once the closing time has passed."""
        if not self._series:
            return True
        known = self._known_steps
        if known is None:
            found = self._retry(lambda: _steps_of(client, run_id))
            if found is None:
                return False
            known = self._known_steps = found if isinstance(found, set) else set()
        waiting = (self._series.popleft() for _ in range(len(self._series)))
        new = (entries for entries in waiting if entries and entries[0].step not in known)
        for batch in _whole_steps(new):
            if self._retry(lambda batch=batch: client.log_batch(run_id, metrics=batch) or True) is None:  # type: ignore[misc]
                return False
            known.update(entry.step for entry in batch)
        return True

    def _send_samples(self, client: MlflowClient, run_id: str) -> bool:
        waiting = [self._samples.popleft() for _ in range(len(self._samples))]
        for batch in _batches(list(chain.from_iterable(waiting)), METRICS_PER_REQUEST):
            if self._retry(lambda batch=batch: client.log_batch(run_id, metrics=batch) or True) is None:  # type: ignore[misc]
                return False
        return True

    def _send_messages(self, client: MlflowClient, run_id: str) -> bool:
        while self._outbox:
            message = self._outbox[0]
            if self._retry(lambda message=message: message(client, run_id) or True) is None:  # type: ignore[misc]
                return False
            self._outbox.popleft()
        return True

    def _retry(self, call: Callable[[], Any]) -> Any:
        """Call until it succeeds; the error if MLflow refuses for good, None once the closing time has passed."""
        pause_seconds = 0.5
        while not self._left.is_set():
            try:
                return call()
            except FAILURES as error:
                if getattr(error, "error_code", None) in REFUSALS:
                    self._refuse("a request", error)
                    return error
                if not self._warned:
                    self._warn(f"does not answer yet; no step waits for it, retries continue: {error}")
                self._warned = True
            if self._closing.is_set():
                if time.monotonic() + 0.5 > self._closing_at:
                    return None
                time.sleep(0.5)
            else:
                self._closing.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        return None

    def _warn(self, what: str) -> None:
        logger.warning("%s", without_secrets(f"MLflow at {self._uri} {what}")[:400])


def series_entries(journal_line: Mapping[str, Any]) -> list[Metric]:
    """The metrics of one journal line, at its own step and time: sent twice they are kept once."""
    validation = journal_line.get("validation", {})
    figures = {key: journal_line[key] for key in SERIES if journal_line.get(key) is not None}
    figures |= {f"validation_{key}": value for key, value in validation.items() if isinstance(value, float)}
    return metric_entries(figures, journal_line["step"], journal_line["unix_seconds"])


def metric_entries(metrics: Mapping[str, float], step: int, unix_seconds: float) -> list[Metric]:
    """The finite ones among the metrics, as MLflow's entities."""
    milliseconds = int(unix_seconds * 1000)
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    return [Metric(key, value, milliseconds, step) for key, value in finite.items()]


def tracking_client_for(uri: str) -> MlflowClient:
    """A client with short time-outs that retries nothing itself.

    Raises:
        MlflowException, SQLAlchemyError, OSError: the URI is none, or its database cannot be opened.
    """
    for noisy in ("mlflow", "alembic"):  # they log every table that they create
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # By default one request may retry for minutes; retries are this module's (see `Run._retry`).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _is_param(key: str, value: str) -> bool:
    """Whether MLflow takes a parameter as it is: it would cut a long value, and refuse a key that is no tidy path."""
    is_path = posixpath.normpath(key) == key and not key.startswith((".", "/"))
    return len(key) <= KEY_LENGTH and len(value) <= PARAM_LENGTH and is_path and PARAM_KEY.fullmatch(key) is not None


def _upload(client: MlflowClient, run_id: str, content: bytes, name: str, folder: str | None) -> None:
    with TemporaryDirectory() as parent:
        path = Path(parent) / name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), folder)


def _create_experiment(client: MlflowClient, experiment: str) -> str:
    try:
        return str(client.create_experiment(experiment, artifact_location=_artifacts_beside(client.tracking_uri)))
    except MlflowException:  # another job was faster
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def _artifacts_beside(uri: str) -> str | None:
    """Artifacts of a SQLite store lie beside it (MLflow's default is the working directory); servers decide."""
    path = database_file(uri)
    return None if path is None else (path.parent / "mlartifacts").as_uri()


def sqlite_uri(path: str | Path) -> str:
    """The tracking URI of a SQLite file; `?` would begin a query, and `%` an encoded character."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # With the driver's name MLflow leaves the folder alone: otherwise it makes one of the quoted name.
    return f"sqlite:///{path}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def database_file(uri: str) -> Path | None:
    """The file of a SQLite tracking URI; None for any other."""
    database = make_url(uri).database if uri.startswith(("sqlite:///", "sqlite+pysqlite:///")) else None
    return Path(database) if database else None


def _steps_of(client: MlflowClient, run_id: str) -> set[int]:
    """The steps that a run has."""
    return {entry.step for entry in client.get_metric_history(run_id, SERIES[0])}


def _whole_steps(steps: Iterable[Sequence[Metric]]) -> Iterator[list[Metric]]:
    """Steps in requests that MLflow takes; a step is never cut in two, so that its loss stands for all of it."""
    batch: list[Metric] = []
    for entries in steps:
        if len(batch) + len(entries) > METRICS_PER_REQUEST:
            yield batch
            batch = []
        batch += entries
    if batch:
        yield batch


def _batches(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(entries)
    while batch := list(islice(remaining, size)):
        yield batch
