"""A child process that opens videos for its parent: started lean, confined, killed at its deadline.

Both sides of it: `ChildProcess` is the parent's, `confine`, `armed` and `rejection` are the child's. What happens to a
child that dies or hangs is a ``DecodeError`` with the reason "crashed" or "timeout".
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import av.error

from pipeline.decode.config import DecodeError

# A path is put in front instead of `-m`: the child finds this very `pipeline`, wherever the parent imported it from.
CHILD = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2]).main(*map(int, sys.argv[3:]))
"""
ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
KILL_SECONDS = 5.0
# A child without a CPU to run on is waited for, up to this many deadlines; then its own alarm is the last resort.
PATIENCE = 10
ALARM_DEADLINES = 2 * PATIENCE
# decord allocates every picture anew in a thread of its own: in one arena that keeps its pages it takes 10 % less.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DECORD_EOF_RETRY_MAX": "64",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}
# What a library raises for a video that it cannot read.
LIBRARY_ERRORS = (av.error.FFmpegError, ValueError, ArithmeticError)


class ChildProcess:
    """The parent's side. The child is ``module``'s ``main(connection file, *files)``; its first message is "ready"."""

    def __init__(self, module: str, settings: Any, deadline_seconds: float, files: Sequence[int] = ()) -> None:
        self.deadline_seconds = deadline_seconds
        self.answers = 0
        self._ready = False
        mine, theirs = socket.socketpair()
        with theirs:
            arguments = [str(ROOT), module, str(theirs.fileno()), *map(str, files)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, *arguments],
                pass_fds=(theirs.fileno(), *files),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **ENVIRONMENT},
            )
        self._connection = Connection(mine.detach())
        self._scheduling: int | None = None
        with contextlib.suppress(OSError):
            self._scheduling = os.open(f"/proc/{self._process.pid}/schedstat", os.O_RDONLY)
        self._connection.send(settings)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def answers_to(self, request: Any) -> Iterator[tuple[Any, ...]]:
        """Send a request; its messages as they come, each within the deadline. The caller knows the last one.

        Raises:
            DecodeError: "timeout" or "crashed"; the child is gone then.
        """
        try:
            if not self._ready:
                self._receive(START_SECONDS)
                self._ready = True
            self._connection.send(request)
            while True:
                yield self._receive(self.deadline_seconds)
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error

    def end(self) -> None:
        """Kill: the child holds nothing worth a farewell."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel on a dead network file system
            self._process.wait(KILL_SECONDS)
        self._connection.close()
        if self._scheduling is not None:
            os.close(self._scheduling)
            self._scheduling = None

    def _receive(self, seconds: float) -> tuple[Any, ...]:
        """Wait, not counting the time in which the child had no CPU to run on: a busy machine is no hanging video."""
        began, waited_before = time.monotonic(), self._seconds_without_cpu()
        left = seconds
        while not self._connection.poll(max(left, 0.01)):
            elapsed = time.monotonic() - began
            left = seconds - elapsed + self._seconds_without_cpu() - waited_before
            if left <= 0 or elapsed > PATIENCE * seconds:
                self.end()
                raise DecodeError("timeout", f"no answer in {seconds:g} s; the decoder was killed")
        message: tuple[Any, ...] = self._connection.recv()
        return message

    def _seconds_without_cpu(self) -> float:
        """How long the child was ready to run and had to wait; 0 where the kernel keeps no count."""
        if self._scheduling is None:
            return 0.0
        try:
            return int(os.pread(self._scheduling, 128, 0).split()[1]) / 1e9
        except (OSError, IndexError):  # the process has ended
            return 0.0

    def _lost(self) -> DecodeError:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its end, and is about to die
            self._process.wait(KILL_SECONDS)
        self.end()
        code = self._process.returncode or 0
        if code == -signal.SIGALRM:
            return DecodeError("timeout", "the decoder ended itself after its deadline")
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("crashed", f"the decoder died of {ending}")


def confine(memory_bytes: int) -> None:
    """The child's limits: memory, no core file, no word on the terminal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    av.logging.set_level(av.logging.PANIC)


def arm(deadline_seconds: float) -> None:
    """Die of SIGALRM when the parent could not kill a hang (it may be gone itself); 0 takes the alarm back."""
    signal.setitimer(signal.ITIMER_REAL, ALARM_DEADLINES * deadline_seconds)


def rejection(error: Exception) -> tuple[str, str]:
    """Reason and message of a video that cannot be used."""
    if isinstance(error, DecodeError):
        return error.reason, error.message
    if isinstance(error, MemoryError):
        return "out_of_memory", "decoding needs more than memory_bytes"
    damage = DecodeError.quoting("damaged", f"{type(error).__name__}: {error}")
    return damage.reason, damage.message


@contextlib.contextmanager
def openable(path: str) -> Iterator[str]:
    """The path itself, or another name of the file where the path is no valid UTF-8 (the libraries want that)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DecodeError("missing", str(error.strerror)) from error
        try:
            yield f"/proc/self/fd/{file}"
        finally:
            os.close(file)
    else:
        yield path
