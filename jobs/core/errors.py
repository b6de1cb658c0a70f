"""The errors that end a command with a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.storage.files import StorageError


class UserError(Exception):
    """A mistake that the person who started the command can mend: exit code 2, one message.

    The message names the dotted key, the value, the rule and the remedy.
    """


class StopRequestedError(Exception):
    """The command was asked to stop (SIGTERM, pre-emption) and has saved its work: exit code 3."""


class WorkStoppedError(Exception):
    """The command cannot go on, through no fault of its arguments; finished work is kept: exit code 1."""


class TrainingStoppedError(WorkStoppedError):
    """Training cannot go on and a restart would not help; the checkpoints are kept: exit code 1."""


@contextmanager
def storage_trouble_stops() -> Iterator[None]:
    """Once a run holds its output, storage that fails is no mistake in the arguments.

    Raises:
        TrainingStoppedError: storage failed.
    """
    try:
        yield
    except StorageError as error:
        raise TrainingStoppedError(f"{error}; the checkpoints are kept: the same command goes on") from error
