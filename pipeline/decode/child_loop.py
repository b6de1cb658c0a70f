"""The child's side: one loop that answers requests about videos, one at a time, confined.

Its imports are few, so that a child starts in 0.2 s, and it holds nothing that a damaged video could hurt.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import av
import av.error

from pipeline.decode.child_process import MOST_DEADLINES
from pipeline.decode.config import DecodeConfig, DecodeError

# The child's own alarm rings after the parent has given up: the last resort when the parent cannot kill it.
ALARM_DEADLINES = 2 * MOST_DEADLINES
PROGRESS_REPORTS_A_DEADLINE = 10
# What a library raises for a video that it cannot read.
LIBRARY_ERRORS = (av.error.FFmpegError, ValueError, ArithmeticError)


class Replies:
    """How a handler answers before it has its result. Each message begins a new deadline, here and in the parent."""

    def __init__(self, connection: Connection, limits: DecodeConfig) -> None:
        self.limits = limits
        self._connection = connection
        self._reported = 0.0

    def emit(self, output: Any) -> None:
        """Send a part of the answer."""
        self._send("output", output)

    def progress(self) -> None:
        """Report that the work advances; call it as often as it does."""
        if time.monotonic() - self._reported > self.limits.deadline_seconds / PROGRESS_REPORTS_A_DEADLINE:
            self._reported = time.monotonic()
            self._send("progress", None)

    def _send(self, kind: str, content: Any) -> None:
        arm(self.limits.deadline_seconds)
        self._connection.send((kind, content))


Handler = Callable[[str, Any, Replies], Any]
"""Path, request and replies → the request's result. A ``DecodeError``, or what a library raises, rejects the video."""


def serve(connection_file: int, handlers: Mapping[type, Handler]) -> None:
    """Answer the parent at the other end of an inherited socket until it closes the connection."""
    connection = Connection(connection_file)
    limits: DecodeConfig = connection.recv()
    confine(limits.memory_bytes)
    connection.send(("ready", None))
    while True:
        try:
            path, request = connection.recv()
        except EOFError:
            return
        arm(limits.deadline_seconds)
        connection.send(_answer(path, request, handlers, Replies(connection, limits)))
        arm(0)


def _answer(path: str, request: Any, handlers: Mapping[type, Handler], replies: Replies) -> tuple[str, Any]:
    try:
        with _openable(path) as name:
            return "done", handlers[type(request)](name, request, replies)
    except DecodeError as error:
        return "rejected", (error.reason, error.message)
    except MemoryError:
        return "rejected", ("out_of_memory", "decoding needs more than memory_bytes")
    except LIBRARY_ERRORS as error:
        return "rejected", DecodeError.quoting("damaged", f"{type(error).__name__}: {error}").args


def confine(memory_bytes: int) -> None:
    """The child's limits: memory, no core file, nothing on the terminal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    av.logging.set_level(av.logging.PANIC)


def arm(deadline_seconds: float) -> None:
    """Die of SIGALRM when the parent could not kill a hang (it may be dead itself); 0 takes the alarm back."""
    signal.setitimer(signal.ITIMER_REAL, ALARM_DEADLINES * deadline_seconds)


@contextlib.contextmanager
def _openable(path: str) -> Iterator[str]:
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
