"""Memory of this command and every process that it started, Ray's included."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

SECONDS_BETWEEN_LOOKS = 2.0


class PeakMemory:
    """The highest sum seen so far."""

    def __init__(self) -> None:
        self.gib = 0.0

    def look(self) -> None:
        """Sum the proportional set sizes: memory shared by several processes counts once."""
        total = sum(_proportional_bytes(process) for process in _family())
        self.gib = max(self.gib, total / 2**30)


@contextmanager
def watch_memory() -> Iterator[PeakMemory]:
    """Look every two seconds while the context lasts."""
    peak, ended = PeakMemory(), threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            peak.look()

    watcher = threading.Thread(target=watch, name="memory-watcher", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
        return 0
    return int(getattr(memory, "pss", memory.uss))
