"""The parent's side of a child process that opens videos: started lean, given deadlines, replaced when it is lost.

`IsolatedService` answers requests about videos through a `ChildProcess`, which runs ``pipeline.decode.child_loop``.
What happens to a child that dies or hangs is a ``DecodeError`` with the reason "crashed" or "timeout".
"""

from __future__ import annotations

import contextlib
import functools
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
from types import TracebackType
from typing import Any, Self

from pipeline.decode.config import DecodeConfig, DecodeError

# A path is put in front instead of `-m`: the child finds this very `pipeline`, wherever the parent imported it from.
CHILD = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2]).main(int(sys.argv[3]))
"""
ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
KILL_SECONDS = 5.0
# A child that gets no CPU to run on is waited for, up to this many deadlines.
MOST_DEADLINES = 10
# decord allocates memory for every picture in a thread: in one arena that keeps its pages it takes 10 % less time.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DECORD_EOF_RETRY_MAX": "64",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}


class IsolatedService:
    """Requests about videos, answered in a child process that is replaced when it hangs, crashes or has grown.

    Safe to keep for millions of videos. Use from one thread at a time. Closed by ``close``, by ``with``, or with the
    object.

    Args:
        module: the child's; its ``main`` calls ``child_loop.serve`` with a handler for each type of request.
        limits: what one video may cost.
        files: open files that the child inherits under the same numbers.
    """

    def __init__(self, module: str, limits: DecodeConfig, files: Sequence[int] = ()) -> None:
        self.limits = limits
        self.children_lost = 0
        self._start = functools.partial(ChildProcess, module, limits, files)
        self._child: ChildProcess | None = self._start()  # ahead of the first request, which then need not wait for it

    def answers(self, path: str | os.PathLike[str], request: Any) -> Iterator[Any]:
        """What the child emits for a request about a local video, as it comes; the request's result is the last.

        Raises:
            DecodeError: the video cannot be used; "timeout" or "crashed" when the child was lost over it.
        """
        child = self._child or self._start()
        self._child = None  # back only after a complete answer: what is left unread would answer the next request
        try:
            for kind, content in child.messages((os.path.abspath(path), request)):
                if kind == "output":
                    yield content
                elif kind != "progress":
                    break
        except DecodeError:
            self.children_lost += 1
            raise
        except BaseException:  # the caller takes no more, or a signal came
            child.end()
            raise
        self._keep(child)
        if kind == "rejected":
            raise DecodeError(*content)
        yield content

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
        self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()

    def _keep(self, child: ChildProcess) -> None:
        """For the next request, unless it is old or large: the libraries' memory grows from video to video."""
        if child.requests >= self.limits.videos_per_child or child.resident_bytes() > self.limits.memory_bytes // 2:
            child.end()
        else:
            self._child = child


class ChildProcess:
    """One child; its first message is "ready"."""

    def __init__(self, module: str, limits: DecodeConfig, files: Sequence[int]) -> None:
        self.deadline_seconds = limits.deadline_seconds
        self.requests = 0
        self._ready = False
        mine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, str(ROOT), module, str(theirs.fileno())],
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
        self._connection.send(limits)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process_id}/statm").read_text().split()[1]) * resource.getpagesize()

    def messages(self, request: Any) -> Iterator[tuple[str, Any]]:
        """Send a request; the child's messages as they come, each within the deadline. The caller knows the last one.

        Raises:
            DecodeError: "timeout" or "crashed"; the child has ended then.
        """
        try:
            if not self._ready:
                self._receive(START_SECONDS)
                self._ready = True
            self.requests += 1
            self._connection.send(request)
            while True:
                yield self._receive(self.deadline_seconds)
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error

    def end(self) -> None:
        """Kill: the child holds nothing that it would have to put in order."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel on a dead network file system
            self._process.wait(KILL_SECONDS)
        self._connection.close()
        if self._scheduling is not None:
            os.close(self._scheduling)
            self._scheduling = None

    def _receive(self, seconds: float) -> tuple[str, Any]:
        """Wait, not counting the time in which the child had no CPU to run on: a busy machine is no hanging video."""
        began, waited_before = time.monotonic(), self._seconds_without_cpu()
        left = seconds
        while not self._connection.poll(max(left, 0.01)):
            elapsed = time.monotonic() - began
            left = seconds - elapsed + self._seconds_without_cpu() - waited_before
            if left <= 0 or elapsed > MOST_DEADLINES * seconds:
                self.end()
                raise DecodeError("timeout", f"no answer in {seconds:g} s; the decoder was killed")
        message: tuple[str, Any] = self._connection.recv()
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
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("crashed", f"the decoder died of {cause}")
