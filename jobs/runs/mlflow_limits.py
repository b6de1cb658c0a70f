"""What MLflow takes: how much in one request, which names and values, and which of its errors are final."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import boto3.exceptions
import botocore.exceptions
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    path_not_unique,
    validate_param_and_metric_name,
)
from sqlalchemy.exc import SQLAlchemyError

from pipeline.storage.files import StorageError

Entry = TypeVar("Entry")

RUN_NAME_LENGTH = 250  # the database column; MLflow itself does not check it, and SQLite takes any length
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


def is_refusal(error: Exception) -> bool:
    """Whether a retry of the same request would fail again."""
    return getattr(error, "error_code", None) in REFUSALS


def is_name(key: str) -> bool:
    """Whether MLflow takes a name of a parameter, tag or metric: a tidy path of some characters."""
    return bool(validate_param_and_metric_name(key)) and not path_not_unique(key) and len(key) <= MAX_ENTITY_KEY_LENGTH


def is_text(value: str) -> bool:
    """Whether a value is stored as it is: MLflow cuts long ones, and PostgreSQL refuses NUL."""
    return len(value) <= MAX_PARAM_VAL_LENGTH and "\0" not in value


def valid_text(value: object) -> str:
    """A value as text that can be encoded: file names need not be UTF-8, and one would block all that follows."""
    return str(value).encode(errors="backslashreplace").decode()


def metric_entries(metrics: Mapping[str, float], step: int, unix_seconds: float) -> list[Metric]:
    """The finite ones among the metrics, as MLflow's entities."""
    milliseconds = int(unix_seconds * 1000)
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    return [Metric(key, value, milliseconds, step) for key, value in finite.items()]


def whole_steps(steps: Iterable[Sequence[Metric]]) -> Iterator[list[Metric]]:
    """Steps in requests that MLflow takes; a step is never cut in two, so that its loss stands for all of it."""
    batch: list[Metric] = []
    for entries in steps:
        if len(batch) + len(entries) > MAX_METRICS_PER_BATCH:
            yield batch
            batch = []
        batch += entries
    if batch:
        yield batch


def batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Entries in lists of ``size`` at most."""
    remaining = iter(entries)
    while batch := list(islice(remaining, size)):
        yield batch
