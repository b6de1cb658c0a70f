"""Stopping on request: SIGTERM at the driver becomes a flag that every rank sees at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray


@ray.remote(num_cpus=0)
class StopFlag:
    """Holds whether the run was asked to stop."""

    def __init__(self) -> None:
        self._requested = False

    def request(self) -> None:
        """Ask the run to stop at its next step."""
        self._requested = True

    def requested(self) -> bool:
        """Whether it was asked to."""
        return self._requested


@contextmanager
def stop_on_sigterm() -> Iterator[Any]:
    """A `StopFlag` actor that SIGTERM at this process sets; the former handler comes back at the end."""
    flag = StopFlag.remote()
    asked, ended = threading.Event(), threading.Event()
    former = signal.getsignal(signal.SIGTERM)

    def remember(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    def forward() -> None:  # a thread, because a signal handler must not call into Ray
        while not ended.is_set():
            if asked.wait(0.2):
                ray.get(flag.request.remote())
                return

    signal.signal(signal.SIGTERM, remember)
    watcher = threading.Thread(target=forward, name="sigterm-watcher", daemon=True)
    watcher.start()
    try:
        yield flag
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGTERM, former)


class StopPoll:
    """Asks the flag without ever waiting for the answer."""

    def __init__(self, flag: Any) -> None:
        self._flag = flag
        self._answer = flag.requested.remote()

    def requested(self) -> bool:
        """The newest answer that has arrived."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return False
        requested = bool(ray.get(self._answer))
        self._answer = self._flag.requested.remote()
        return requested
