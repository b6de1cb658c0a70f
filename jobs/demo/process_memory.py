"""Peak memory of this command and every process that it started, Ray's included.

Two measurements, because neither sees everything:

- A sum over the processes, sampled. It reads `/proc/PID/statm`, which takes no lock; the proportional set size of
  `smaps_rollup` would be exact, but holds the memory-map lock of a worker that wants to train. A peak between two
  samples is missed.
- The kernel's own high-water mark of the memory cgroup, which misses nothing but also counts the page cache and
  whatever else runs in the group. Resetting the mark would change what others read, so it counts only when it rose
  while the command ran.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

SECONDS_BETWEEN_SAMPLES = 15.0
CGROUP_ROOT = Path("/sys/fs/cgroup")


class PeakMemory:
    """The highest values so far."""

    def __init__(self) -> None:
        self.processes_gib = 0.0
        self._first_mark = cgroup_peak_bytes()

    def sample(self) -> None:
        """Sum over the process tree: private memory of each, and the largest shared part once."""
        self.processes_gib = max(self.processes_gib, process_tree_bytes() / 2**30)

    def figures(self) -> dict[str, float]:
        """The peaks under their names; the cgroup's only where it rose since this began."""
        mark = cgroup_peak_bytes()
        rose = mark is not None and mark != self._first_mark
        cgroup = {"peak memory of the cgroup with its page cache, GiB": mark / 2**30} if rose and mark else {}
        return {"peak memory of all processes, GiB": self.processes_gib, **cgroup}


@contextmanager
def watch_memory(seconds_between: float = SECONDS_BETWEEN_SAMPLES) -> Iterator[PeakMemory]:
    """Sample now and then while the context lasts."""
    peak, ended = PeakMemory(), threading.Event()

    def watch() -> None:
        while not ended.wait(seconds_between):
            peak.sample()

    watcher = threading.Thread(target=watch, name="memory-watcher", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.sample()


def process_tree_bytes() -> int:
    """Memory of this process and all below it.

    Processes share mostly the same pages (libraries, Ray's object store), so the largest shared part stands for all.
    """
    own = psutil.Process()
    private, shared = 0, [0]
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory = process.memory_info()
            shared.append(getattr(memory, "shared", 0))
            private += memory.rss - shared[-1]
    return private + max(shared)


def cgroup_peak_bytes(root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The high-water mark of the own memory cgroup, version 2 (`memory.peak`) or 1; None where there is none."""
    for file in _peak_files(root, membership):
        with suppress(OSError):
            return int(file.read_text())
    return None


def _peak_files(root: Path, membership: Path) -> Iterator[Path]:
    lines = membership.read_text().splitlines() if membership.exists() else []  # no cgroups: not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield root / path.lstrip("/") / "memory.peak"
        elif "memory" in controllers.split(","):
            yield root / "memory" / path.lstrip("/") / "memory.max_usage_in_bytes"
