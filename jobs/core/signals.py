"""Stopping a command whose finished work is on storage already: one message and an exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray.exceptions import RayError

from jobs.core.errors import StopRequestedError, WorkStoppedError
from pipeline.storage.files import StorageError


@contextmanager
def keeping_finished_work(what_is_kept: str) -> Iterator[None]:
    """Within, SIGTERM ends the command with exit code 3, and a failure of storage or of the cluster with 1.

    Args:
        what_is_kept: end of the message in both cases: what is kept, and how to resume.

    Raises:
        StopRequestedError: SIGTERM.
        WorkStoppedError: storage or Ray failed.
    """
    try:
        with stopping_on_sigterm(what_is_kept):
            yield
    except (StorageError, RayError) as error:
        raise WorkStoppedError(f"{error}; {what_is_kept}") from error


@contextmanager
def stopping_on_sigterm(what_is_kept: str) -> Iterator[None]:
    """Within, SIGTERM raises `StopRequestedError` in the main thread; in other threads nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requested = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        raise StopRequestedError(what_is_kept)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except StopRequestedError:
        raise
    except Exception as error:
        if not requested:
            raise
        # Compiled code, such as Ray's, turns an exception raised within it into an error of another class.
        raise StopRequestedError(what_is_kept) from error
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def sigterm_delayed() -> Iterator[None]:
    """Within, SIGTERM waits for the end of the block: for a few calls that only make sense together.

    It is dropped where the block raises, since the command ends then anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = True

    former = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
    if received:
        signal.raise_signal(signal.SIGTERM)
