"""One MLflow run, fed by a background thread that no caller ever waits for.

The authoritative record of a run is under its ``output`` (journal, report). A `Run` takes what is meant for MLflow and
returns at once; a dead, slow or hanging server costs nothing but memory up to a bound. What it missed is sent later
from the journal (`jobs.sync`).
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from jobs.core.config import flatten
from jobs.core.redaction import public, without_secrets
from jobs.runs.mlflow_limits import (
    FAILURES,
    batches,
    is_name,
    is_refusal,
    is_text,
    metric_entries,
    valid_text,
    whole_steps,
)
from jobs.runs.mlflow_store import experiment_id, tracking_client_for, upload
from pipeline.storage.files import read_bytes

logger = logging.getLogger(__name__)

OTHER_PARAMS, OTHER_TAGS = "params.json", "tags.json"
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
Send = Callable[[MlflowClient, str], object]
Message = tuple[str, Send]
"""What is sent, for the log, and the request or requests."""


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
        self._uri, self._experiment = uri, experiment
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
        self._other: dict[str, dict[str, str]] = {OTHER_PARAMS: {}, OTHER_TAGS: {}}
        self._tags = self._taken(public(dict(tags)), OTHER_TAGS)
        self._thread = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        if uri is not None:
            self._thread.start()

    @property
    def refused(self) -> Sequence[str]:
        """Names of what MLflow refused so far."""
        return tuple(self._refused)

    @property
    def backlog(self) -> int:
        """Messages and steps that wait to be sent."""
        return len(self._outbox) + len(self._series)

    def wait_for_id(self, seconds: float) -> str | None:
        """The MLflow run id, waiting at most ``seconds`` for the server; None when it does not answer."""
        if self._uri is not None:
            self._found.wait(seconds)
        return self.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record a (nested) configuration as dotted parameters.

        What MLflow does not take, keys with other characters and long values, becomes the artifact `OTHER_PARAMS`.
        """
        taken = self._taken(flatten(public(dict(params))), OTHER_PARAMS)
        self._post_entries("params", [Param(key, value) for key, value in taken.items()])

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags; those with value None are left out, and odd ones become the artifact `OTHER_TAGS`."""
        given = {key: without_secrets(str(value)) for key, value in tags.items() if value is not None}
        self._post_entries("tags", [RunTag(key, value) for key, value in self._taken(given, OTHER_TAGS).items()])

    def _taken(self, entries: Mapping[str, Any], artifact: str) -> dict[str, str]:
        """The entries that MLflow takes; the others are uploaded as an artifact."""
        texts = {valid_text(key): valid_text(value) for key, value in entries.items()}
        odd = {key: value for key, value in entries.items() if not _is_entry(valid_text(key), valid_text(value))}
        if odd:
            self._other[artifact] |= odd
            content = json.dumps(self._other[artifact], indent=1, ensure_ascii=False, default=str)
            self._post_artifact(lambda: content.encode(errors="backslashreplace"), artifact, None)
        return {key: value for key, value in texts.items() if _is_entry(key, value)}

    def log_dataset(self, dataset: Any, context: str) -> None:
        """Record an `mlflow.data` dataset as an input of the run; ``context`` says what for."""
        tags = [InputTag("mlflow.data.context", context)]
        entry = DatasetInput(dataset._to_mlflow_entity(), tags)
        self._post(f"the dataset of {context}", lambda client, run_id: client.log_inputs(run_id, datasets=[entry]))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record finite numbers, with the time of the call; others are left out and logged by name."""
        if wild := [key for key, value in metrics.items() if not math.isfinite(value)]:
            self._warn(f"gets finite numbers only; left out: {', '.join(wild)}")
        self._post_entries("metrics", metric_entries(metrics, step, time.time()))

    def log_sample(self, metrics: Mapping[str, float], step: int) -> None:
        """Record finite numbers of which there will be ever more; while a server is dead only the newest are kept."""
        if self._uri is not None:
            self._samples.append(metric_entries(metrics, step, time.time()))

    def log_missing_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record finite numbers that the run lacks (for a run that was recorded only in part)."""
        entries = metric_entries(metrics, 0, time.time())

        def send(client: MlflowClient, run_id: str) -> None:
            known = client.get_run(run_id).data.metrics
            self._log("metrics", [entry for entry in entries if entry.key not in known], client, run_id)

        self._post("metrics", send)

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
            for batch in whole_steps(missing):
                self._log("metrics", batch, client, run_id)

        self._post("the journal's steps", send)

    def log_artifact(self, local_path: str | Path, folder: str | None = None) -> None:
        """Upload one local file; dropped after a few failures, so that it delays nothing else."""
        content = Path(local_path).read_bytes()
        self._post_artifact(lambda: content, Path(local_path).name, folder)

    def log_stored_artifact(self, uri: str, folder: str | None = None) -> None:
        """Upload one file from where it is stored, read when the sender reaches it."""
        self._post_artifact(lambda: read_bytes(uri), uri.rpartition("/")[2], folder)

    def _post_entries(self, kind: str, entries: Sequence[Any]) -> None:
        size = MAX_METRICS_PER_BATCH if kind == "metrics" else MAX_PARAMS_TAGS_PER_BATCH
        for batch in batches(entries, size):
            self._post(kind, partial(self._log, kind, batch))

    def _log(self, kind: str, entries: Sequence[Any], client: MlflowClient, run_id: str) -> None:
        """Send entries in one request; if MLflow refuses it, in halves, so that an odd one costs no other."""
        if kind == "metrics":
            for entry in entries:
                if not is_name(entry.key):
                    self._refuse(entry.key, "a metric's name is a path of letters, digits, and characters of ' _.:-'")
            entries = [entry for entry in entries if entry.key not in self._refused]
        if not entries:
            return
        try:
            client.log_batch(run_id, **{kind: entries})
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if len(entries) == 1:
                self._refuse_entry(entries[0].key, error)
                return
            middle = len(entries) // 2
            for half in (entries[:middle], entries[middle:]):
                self._log(kind, half, client, run_id)

    def _refuse_entry(self, key: str, error: MlflowException) -> None:
        if OTHER_VALUE in str(error):  # of a key that may differ between starts: the first start's value stays
            self._warn(f"keeps the earlier value of {key}: {error}")
        else:
            self._refuse(key, error)

    def _refuse(self, name: str, error: object) -> None:
        """Remember by its name what MLflow does not have; `drain` reports it."""
        if name not in self._refused:
            self._refused.append(name)
            self._warn(f"refused {name}, which is left out: {error}")

    def _post_artifact(self, read: Callable[[], bytes], name: str, folder: str | None) -> None:
        retries = iter(range(1, ARTIFACT_TRIES))

        def send(client: MlflowClient, run_id: str) -> None:
            try:
                upload(client, run_id, read(), name, folder)
            except FAILURES as error:
                if next(retries, None) is not None:
                    raise
                self._refuse(name, f"{error}; it stays under the run's output")

        self._post(name, send)

    def finish(self, status: str = "FINISHED", wait_seconds: float = FINISH_SECONDS) -> bool:
        """End the run and wait a bounded time for the sender. Returns whether everything was sent."""
        self._post(f"the status {status}", lambda client, run_id: client.set_terminated(run_id, status))
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

    def _post(self, name: str, send: Send) -> None:
        if self._uri is not None:
            self._outbox.append((name, send))

    def _send_all(self) -> None:
        assert self._uri is not None
        uri = self._uri
        client = self._retry("the tracking URI", lambda: tracking_client_for(uri))
        if not isinstance(client, MlflowClient):
            return
        run_id = self._retry("the run", lambda: self._find_or_create(client))
        if not isinstance(run_id, str):
            return
        self.run_id = run_id
        self._found.set()
        last_round = False
        while not last_round:
            last_round = self._closing.is_set()
            if not self._deliver(client, run_id):
                return
            self._wake.wait(SECONDS_BETWEEN_SENDS)
        self._sent_all = True

    def _find_or_create(self, client: MlflowClient) -> str:
        experiment = experiment_id(client, self._experiment)
        its_own = f"tags.{RUN_KEY_TAG} = '{self.run_key}'"
        runs = client.search_runs([experiment], filter_string=its_own, max_results=1)
        if not runs:
            return self._create(client, experiment)
        if self._resumes:
            client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)

    def _create(self, client: MlflowClient, experiment: str) -> str:
        """Create the run with its tags, or, if one of them is refused, without: `_log` then finds which."""
        key = {RUN_KEY_TAG: self.run_key}
        try:
            return str(client.create_run(experiment, tags={**self._tags, **key}).info.run_id)
        except MlflowException as error:
            if not is_refusal(error):
                raise
        run_id = str(client.create_run(experiment, tags=key).info.run_id)
        self._post_entries("tags", [RunTag(name, value) for name, value in self._tags.items()])
        return run_id

    def _deliver(self, client: MlflowClient, run_id: str) -> bool:
        """Send what waits; False once the closing time has passed."""
        for name, send in self._waiting():
            if self._retry(name, partial(_sent, send, client, run_id)) is None:
                return False
        return True

    def _waiting(self) -> Iterator[Message]:
        """The steps, the newest samples and the messages that wait, each taken when its turn comes."""
        if steps := list(_emptied(self._series)):
            yield "steps", partial(self._log_new_steps, steps)
        for batch in batches(chain.from_iterable(_emptied(self._samples)), MAX_METRICS_PER_BATCH):
            yield "samples", partial(self._log, "metrics", batch)
        while self._outbox:
            yield self._outbox.popleft()

    def _log_new_steps(self, steps: Sequence[Sequence[Metric]], client: MlflowClient, run_id: str) -> None:
        known = self._known_steps
        if known is None:
            known = self._known_steps = _steps_of(client, run_id)
        for batch in whole_steps(entries for entries in steps if entries and entries[0].step not in known):
            self._log("metrics", batch, client, run_id)
            known.update(entry.step for entry in batch)

    def _retry(self, name: str, call: Callable[[], Any]) -> Any:
        """Call until it succeeds; the error if MLflow refuses for good, None once the closing time has passed."""
        pause_seconds = 0.5
        while not self._left.is_set():
            try:
                return call()
            except FAILURES as error:
                if is_refusal(error):
                    self._refuse(name, error)
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
        if self._uri is not None:
            logger.warning("%s", without_secrets(f"MLflow at {self._uri} {what}")[:400])


def series_entries(journal_line: Mapping[str, Any]) -> list[Metric]:
    """The metrics of one journal line, at its own step and time: sent twice they are kept once."""
    validation = journal_line.get("validation", {})
    figures = {key: journal_line[key] for key in SERIES if journal_line.get(key) is not None}
    figures |= {f"validation_{key}": value for key, value in validation.items() if isinstance(value, float)}
    return metric_entries(figures, journal_line["step"], journal_line["unix_seconds"])


def _sent(send: Send, client: MlflowClient, run_id: str) -> bool:
    send(client, run_id)
    return True


def _is_entry(key: str, value: str) -> bool:
    """Whether MLflow takes a parameter or a tag as it is."""
    return is_name(key) and is_text(value)


def _emptied(queue: deque[list[Metric]]) -> Iterator[list[Metric]]:
    """What a queue holds now, oldest first, taken out."""
    return (queue.popleft() for _ in range(len(queue)))


def _steps_of(client: MlflowClient, run_id: str) -> set[int]:
    """The steps that a run has."""
    return {entry.step for entry in client.get_metric_history(run_id, SERIES[0])}
