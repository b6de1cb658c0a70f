"""The errors that end a command with a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.storage.files import StorageError


class UserError(Exception):
    """A mistake in the arguments, which the user can correct: exit code 2, one message.

    The message names the dotted key, the value, the rule and the remedy.
    """


class StopRequestedError(Exception):
    """The command was asked to stop (SIGTERM, pre-emption) and has saved its work: exit code 3."""


class WorkStoppedError(Exception):
    """The command cannot continue, for a reason outside its arguments; finished work is kept: exit code 1."""


class TooManyFailuresError(WorkStoppedError):
    """Too much of the work fails for a common cause, and going on would not help; nothing is wrong with the output."""


class TrainingStoppedError(WorkStoppedError):
    """Training cannot continue, and new workers would not help; the checkpoints are kept: exit code 1."""


@contextmanager
def storage_trouble_stops() -> Iterator[None]:
    """Within, a storage failure counts as a stop, not as a mistake in the arguments: the run has begun.

    Raises:
        TrainingStoppedError: storage failed.
    """
    try:
        yield
    except StorageError as error:
        raise TrainingStoppedError(f"{error}; the checkpoints are kept: run the same command to resume") from error
