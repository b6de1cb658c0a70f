"""Commands whose finished work is on storage already: what ends them on the way, said in a line and an exit code."""

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
    """Within, SIGTERM ends the command with 3; storage or a cluster that fails on the way is nobody's mistake: 1.

    Args:
        what_is_kept: said in either case, and what to do.

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
    """Within, SIGTERM raises `StopRequestedError`, wherever the main thread is; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        raise StopRequestedError(what_is_kept)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except StopRequestedError:
        raise
    except Exception as error:
        if not asked:
            raise
        # Raised while compiled code runs, as Ray's, the request arrives as that code's own error.
        raise StopRequestedError(what_is_kept) from error
    finally:
        signal.signal(signal.SIGTERM, former)
