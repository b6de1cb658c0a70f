"""The child's side: one loop that answers requests about videos, one at a time, confined.

Its imports are few, so that a child starts in 0.2 s, and it holds nothing that a damaged video could hurt. All of them
come before it is confined: afterwards no file can be opened by name, and a late import fails.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, TypeVar

import av
import av.error
import av.subtitles.codeccontext
import av.subtitles.stream
import numpy.ma

from pipeline.confinement.messages import Refusal, write_message
from pipeline.confinement.system_calls import refuse_system_calls
from pipeline.decode.child_process import MOST_DEADLINES
from pipeline.decode.config import DecodeConfig, DecodeError

# The child's own alarm rings after the parent has given up: the last resort when the parent cannot kill it.
ALARM_DEADLINES = 2 * MOST_DEADLINES
PROGRESS_REPORTS_A_DEADLINE = 10
OPEN_FILES = 64
MOST_FILES_OF_A_REQUEST = 2
# What PyAV and NumPy would import when they first need it.
IMPORTED_EARLY = (av.subtitles.codeccontext, av.subtitles.stream, numpy.ma)
# What a library raises for a video that it cannot read.
LIBRARY_ERRORS = (av.error.FFmpegError, ValueError, ArithmeticError)
Result = TypeVar("Result")


class Replies:
    """How a handler answers before it has its result. Each message begins a new deadline, here and in the parent."""

    def __init__(self, parent: BinaryIO, limits: DecodeConfig, memory: Sequence[int] = ()) -> None:
        self.limits = limits
        self.memory = memory
        """Descriptors that came with the request beside the video's."""
        self._parent = parent
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
        write_message(self._parent, kind, content)


Handler = Callable[[str, Any, Replies], Any]
"""Path, request and replies → the request's result. A ``DecodeError``, or what a library raises, rejects the video.

The path is that of an open descriptor (``/proc/self/fd/N``); `media` reads it without opening anything."""


def serve(
    connection_file: int, handlers: Mapping[type, Handler], starts_threads: bool = False, opens_files: bool = False
) -> None:
    """Answer the parent at the other end of an inherited socket until it closes the connection.

    Args:
        starts_threads: whether a library needs threads of its own.
        opens_files: whether a library needs to open files by name.
    """
    requests = socket.socket(fileno=connection_file)
    connection = Connection(os.dup(connection_file))
    limits: DecodeConfig = connection.recv()
    with open(os.dup(connection_file), "wb") as parent:
        write_message(parent, "ready", confine(limits.memory_bytes, starts_threads, opens_files))
        while True:
            mark, files, _, _ = socket.recv_fds(requests, 1, MOST_FILES_OF_A_REQUEST)
            if not mark:
                return
            request = connection.recv()
            arm(limits.deadline_seconds)
            replies = Replies(parent, limits, files[1:])
            write_message(parent, *_answer(f"/proc/self/fd/{files[0]}", request, handlers, replies))
            arm(0)
            for file in files:
                os.close(file)


def _answer(path: str, request: Any, handlers: Mapping[type, Handler], replies: Replies) -> tuple[str, Any]:
    result = result_or_refusal(functools.partial(handlers[type(request)], path, request, replies))
    return ("rejected" if isinstance(result, Refusal) else "done"), result


def result_or_refusal(work: Callable[[], Result]) -> Result | Refusal:
    """What the work gives, or why the file that it reads cannot be used."""
    try:
        return work()
    except DecodeError as error:
        return Refusal(error.reason, error.message)
    except MemoryError:
        return Refusal("out_of_memory", "decoding needs more than memory_bytes")
    except LIBRARY_ERRORS as error:
        return Refusal(*DecodeError.quoting("damaged", f"{type(error).__name__}: {error}").args)


def confine(memory_bytes: int, starts_threads: bool, opens_files: bool) -> str:
    """The child's limits: memory, open files, no file written, few system calls, nothing on the terminal.

    Returns:
        '' or why its system calls are not filtered.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can be written; memory is shared by mapping it
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if not starts_threads:  # they count; where the filter below is refused, this one holds for all users but root
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    av.logging.set_level(av.logging.PANIC)
    return refuse_system_calls(opens_files, starts_threads)


def arm(deadline_seconds: float) -> None:
    """Die of SIGALRM when the parent could not kill a hang (it may be dead itself); 0 takes the alarm back."""
    signal.setitimer(signal.ITIMER_REAL, ALARM_DEADLINES * deadline_seconds)
