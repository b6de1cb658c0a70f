"""The errors that end a command with a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.storage.files import StorageError


class UserError(Exception):
    """A mistake that the person who started the command can correct: exit code 2, one message.

    The message names the dotted key, the value, the rule and the remedy.
    """


class StopRequestedError(Exception):
    """The command was asked to stop (SIGTERM, pre-emption) and has saved its work: exit code 3."""


class WorkStoppedError(Exception):
    """The command cannot continue, through no fault of its arguments; finished work is kept: exit code 1."""


class TrainingStoppedError(WorkStoppedError):
    """Training cannot continue and a restart would not help; the checkpoints are kept: exit code 1."""


@contextmanager
def storage_trouble_stops() -> Iterator[None]:
    """A storage failure after a run has claimed its output is not a mistake in the arguments.

    Raises:
        TrainingStoppedError: storage failed.
    """
    try:
        yield
    except StorageError as error:
        raise TrainingStoppedError(f"{error}; the checkpoints are kept: the same command resumes") from error


def first_line(error: Exception) -> str:
    """The first line of what an error reports, without its full stop; the error's type where it reports nothing."""
    return _lines(error)[0].rstrip(".")


def last_line(error: Exception) -> str:
    """The last line of what an error reports: of a traceback, the error itself."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
