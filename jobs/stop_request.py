"""SIGTERM in programs whose finished work is on storage already: stop at once, say so, exit 3."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jobs.errors import StopRequestedError


@contextmanager
def stopping_on_sigterm(what_is_kept: str) -> Iterator[None]:
    """Within, SIGTERM raises `StopRequestedError`, wherever the main thread is; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StopRequestedError(what_is_kept)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
