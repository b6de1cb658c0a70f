"""The series that a running job shows Prometheus: one table of names and meanings, and how their values are set.

Code, documentation, dashboard, recording rules and alerts take the names from here; Ray exports them with ``ray_`` in
front. Labels are bounded: a program, an outcome, never a URI. Without Ray nothing happens, and an exporter that fails
costs its series, never the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray.util.metrics

logger = logging.getLogger(__name__)

PREFIX = "ray_"
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, OSError, AssertionError)


@dataclass(frozen=True)
class Series:
    """One series as Prometheus gets it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def exported(self) -> tuple[str, ...]:
        """Its names in Prometheus."""
        name = PREFIX + self.name
        if self.kind == "histogram":
            return (f"{name}_bucket", f"{name}_sum", f"{name}_count")
        return (f"{name}_total",) if self.kind == "counter" else (name,)


VIEWS = Series("hiera_views", "counter", "Views that training drew, by outcome: ok, or why a view was replaced.",
               ("program", "outcome"))  # fmt: skip
STEP_SECONDS = Series("hiera_step_seconds", "histogram", "Seconds of an optimizer step, waiting for data included.",
                      ("program",), (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250))  # fmt: skip
DATA_WAIT = Series("hiera_data_wait_seconds", "counter", "Seconds that steps waited for data.", ("program",))
VIEWS_PER_SECOND = Series("hiera_views_per_second", "gauge", "Views a second in the newest step.", ("program",))
MFU = Series("hiera_model_flop_utilisation", "gauge", "Share of the devices' peak that the model's arithmetic takes.",
             ("program",))  # fmt: skip
LOSS_IS_FINITE = Series("hiera_loss_is_finite", "gauge", "1 while the newest loss is a number, else 0.", ("program",))
LAST_STEP = Series("hiera_last_step_timestamp_seconds", "gauge", "When the newest optimizer step ended.", ("program",))
LAST_CHECKPOINT = Series("hiera_last_checkpoint_timestamp_seconds", "gauge",
                         "When the newest checkpoint was complete; when training began, before the first.")  # fmt: skip
LAST_COMMIT = Series("hiera_last_commit_timestamp_seconds", "gauge", "When tags were last committed.",
                     ("program",))  # fmt: skip
WINDOWS = Series("hiera_windows", "counter", "Windows that tagging tried, by outcome: ok, or why one has no scores.",
                 ("outcome",))  # fmt: skip
QUEUE = Series("hiera_videos_waiting", "gauge", "Videos that are planned and not tagged yet.")
BACKLOG = Series("hiera_mlflow_backlog", "gauge", "Messages and steps that MLflow has not taken yet.", ("program",))
STORAGE_FAILURES = Series("hiera_storage_failures", "counter", "Calls of object storage that kept failing.")

TABLE: tuple[Series, ...] = (
    VIEWS, STEP_SECONDS, DATA_WAIT, VIEWS_PER_SECOND, MFU, LOSS_IS_FINITE, LAST_STEP, LAST_CHECKPOINT, LAST_COMMIT,
    WINDOWS, QUEUE, BACKLOG, STORAGE_FAILURES,
)  # fmt: skip

_made: dict[str, Any] = {}
_warned: set[str] = set()


def add(series: Series, amount: float = 1.0, **labels: str) -> None:
    """Count up."""
    if amount > 0:  # Ray refuses to count nothing
        _record(series, "inc", amount, labels)


def observe(series: Series, value: float, **labels: str) -> None:
    """Set a gauge, or put a value into a histogram."""
    _record(series, "observe" if series.kind == "histogram" else "set", value, labels)


def stamp(series: Series, **labels: str) -> None:
    """Set a gauge to now. Time stamps, not ages: an age stands still when its process does."""
    observe(series, time.time(), **labels)


def record_steps(program: str, lines: Iterable[Mapping[str, Any]], backlog: int) -> None:
    """What the journal lines of steps say, once a line."""
    for line in lines:
        views, seconds = line["position"] / line["step"], 0.0
        if line["clips_per_second"] > 0:
            seconds = views / line["clips_per_second"]
        failures = [failure["reason"] for failure in line.get("failures", [])]
        for reason in failures:
            add(VIEWS, program=program, outcome=reason)
        add(VIEWS, views - len(failures), program=program, outcome="ok")
        observe(STEP_SECONDS, seconds, program=program)
        add(DATA_WAIT, line["data_wait_seconds"], program=program)
        observe(VIEWS_PER_SECOND, line["clips_per_second"], program=program)
        if "model_flop_utilisation" in line:
            observe(MFU, line["model_flop_utilisation"], program=program)
        observe(LOSS_IS_FINITE, float(line["loss"] - line["loss"] == 0), program=program)
        stamp(LAST_STEP, program=program)
    observe(BACKLOG, backlog, program=program)


def record_windows(outcomes: Mapping[str, int], waiting: int) -> None:
    """What became of the windows of one task, and how many videos wait."""
    for outcome, windows in outcomes.items():
        add(WINDOWS, windows, outcome=outcome)
    observe(QUEUE, waiting)


class _StorageFailures(logging.Handler):
    """Counts what storage warns of. Storage itself must not import Ray: every decoding child would."""

    def emit(self, record: logging.LogRecord) -> None:
        add(STORAGE_FAILURES)


logging.getLogger("pipeline.storage.retry").addHandler(_StorageFailures(logging.WARNING))


def _record(series: Series, verb: str, value: float, labels: Mapping[str, str]) -> None:
    if series.name in _warned or not ray.is_initialized():
        return
    try:
        getattr(_metric(series), verb)(value, tags=dict(labels))
    except _FAILURES as error:
        _warned.add(series.name)
        logger.warning("%s is not exported any more: %s", series.name, error)


def _metric(series: Series) -> Any:
    if series.name not in _made:
        kind = getattr(ray.util.metrics, series.kind.capitalize())
        more = {"boundaries": list(series.bounds)} if series.bounds else {}
        _made[series.name] = kind(series.name, description=series.meaning, tag_keys=series.labels, **more)
    return _made[series.name]
