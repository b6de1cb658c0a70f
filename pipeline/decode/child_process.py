"""The parent's side of a child process that opens videos: started lean, given deadlines, replaced when it is lost.

`IsolatedService` answers requests about videos through a `ChildProcess`, which runs ``pipeline.decode.child_loop``.
What happens to a child that dies or hangs is a ``DecodeError`` with the reason "crashed" or "timeout".

A video may take the child over through a fault of a codec. So the child has none of this process's keys in its
environment and few system calls (`pipeline.confinement`), gets the video as an open file, and what it sends back is
taken as data (`pipeline.confinement.messages`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import logging
import math
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.confinement.messages import MOST_BYTES_BESIDE_FACTS, MessageError, MessageReader
from pipeline.decode.config import DecodeConfig, DecodeError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

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
BYTES_A_READ = 2**18
CPU_CLOCK_OF_A_PROCESS = 2  # clock_getcpuclockid(3), which Python has for threads only
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""All that a child gets of this process's environment, which holds keys of object storage, MLflow and Ray."""
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
        classes: dataclasses of plain values that answers may be beside plain values.
        most_bytes: that one message may carry beside them.
    """

    def __init__(
        self,
        module: str,
        limits: DecodeConfig,
        classes: Sequence[type] = (),
        most_bytes: int = MOST_BYTES_BESIDE_FACTS,
    ) -> None:
        self.limits = limits
        self.children_lost = 0
        self.cpu_seconds = 0.0
        """What the children have used for answers so far."""
        self._start = functools.partial(ChildProcess, module, limits, MessageReader(classes, most_bytes))
        self._child: ChildProcess | None = self._start()  # ahead of the first request, which then need not wait for it

    def answer(
        self, path: str | os.PathLike[str], request: Any, kind: type[Answer], memory: Sequence[int] = ()
    ) -> Answer:
        """The result, of a known type, of a request that has no other parts. Arguments and errors as `answers`."""
        parts = list(itertools.islice(self.answers(path, request, memory), 2))
        if len(parts) != 1 or type(parts[0]) is not kind:
            raise self._distrusted(f"the decoder answered with no {kind.__name__}")
        return parts[0]

    def answers(self, path: str | os.PathLike[str], request: Any, memory: Sequence[int] = ()) -> Iterator[Any]:
        """What the child emits for a request about a local video, as it comes; the request's result is the last.

        Args:
            memory: files that the child gets beside the video.

        Raises:
            DecodeError: the video cannot be used; "timeout" or "crashed" when the child was lost over it.
        """
        with contextlib.ExitStack() as stack:
            video = opened(path)
            stack.callback(os.close, video)
            child = self._child or self._start()
            self._child = None  # back only after a complete answer: what is left unread would answer the next request
            try:
                for kind, content in child.messages(request, [video, *memory]):
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
            finally:
                self.cpu_seconds += child.cpu_seconds_of_request
        self._keep(child)
        if kind == "rejected":
            raise DecodeError(content.reason, content.message)
        yield content

    def close(self) -> None:
        """End the child."""
        self._end_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()

    def _distrusted(self, why: str) -> DecodeError:
        """The error about an answer that cannot be true; the child that gave it ends."""
        self._end_child()
        self.children_lost += 1
        return DecodeError("crashed", why)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None

    def _keep(self, child: ChildProcess) -> None:
        """For the next request, unless it is old or large: the libraries' memory grows from video to video."""
        if child.requests >= self.limits.videos_per_child or child.resident_bytes() > self.limits.memory_bytes // 2:
            child.end()
        else:
            self._child = child


class ChildProcess:
    """One child; its first message is "ready"."""

    def __init__(self, module: str, limits: DecodeConfig, reader: MessageReader) -> None:
        self._reader = reader
        self._limits = limits
        self.requests = 0
        self.cpu_seconds_of_request = 0.0
        self._ready = False
        self._socket, theirs = socket.socketpair()
        # A message of which nothing more comes does not block without end; nor does a child that reads none.
        self._longest = MOST_DEADLINES * limits.deadline_seconds
        longest = struct.pack("ll", math.ceil(self._longest), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, longest)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, longest)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, str(ROOT), module, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in INHERITED if name in os.environ} | ENVIRONMENT,
            )
        self._connection = Connection(os.dup(self._socket.fileno()))
        self._scheduling: int | None = None
        with contextlib.suppress(OSError):
            self._scheduling = os.open(f"/proc/{self._process.pid}/schedstat", os.O_RDONLY)
        self._connection.send(limits)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process_id}/statm").read_text().split()[1]) * resource.getpagesize()

    def messages(self, request: Any, files: Sequence[int]) -> Iterator[tuple[str, Any]]:
        """Send a request; the child's messages as they come, each within the deadline. The caller knows the last one.

        Args:
            files: open files that the child gets: the video, and what else the request needs.

        Raises:
            DecodeError: "timeout", "crashed" or "max_cpu_seconds"; the child has ended then.
        """
        try:
            if not self._ready:
                _warn_unconfined(self._receive(START_SECONDS, ("ready",)))
                self._ready = True
            self.requests += 1
            began, cpu_before, self.cpu_seconds_of_request = time.monotonic(), self._cpu_seconds(), 0.0
            socket.send_fds(self._socket, [b"\0"], files)
            self._connection.send(request)
            while True:
                kind, content = self._receive(self._limits.deadline_seconds, ("progress", "output", "done", "rejected"))
                self.cpu_seconds_of_request = self._cpu_seconds() - cpu_before
                if kind in ("progress", "output"):
                    self._refuse_endless(max(self.cpu_seconds_of_request, (time.monotonic() - began) / MOST_DEADLINES))
                yield kind, content
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error
        except BlockingIOError as error:
            self.end()
            raise DecodeError("timeout", "the decoder stopped in the middle of a message; it was killed") from error

    def _refuse_endless(self, seconds: float) -> None:
        """Reports of progress begin new deadlines; all of them together have an end.

        Args:
            seconds: of CPU, or a tenth of the time on the clock: a child may also wait without end.
        """
        if seconds > self._limits.max_cpu_seconds:
            self.end()
            raise DecodeError.over("max_cpu_seconds", seconds, self._limits.max_cpu_seconds)

    def end(self) -> None:
        """Kill: the child holds nothing that it would have to put in order."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel on a dead network file system
            self._process.wait(KILL_SECONDS)
        self._connection.close()
        self._socket.close()
        if self._scheduling is not None:
            os.close(self._scheduling)
            self._scheduling = None

    def _receive(self, seconds: float, kinds: Sequence[str]) -> tuple[str, Any]:
        """Wait, not counting the time in which the child had no CPU to run on: a busy machine is no hanging video."""
        began, waited_before = time.monotonic(), self._seconds_without_cpu()
        left = seconds
        while not self._connection.poll(max(left, 0.01)):
            elapsed = time.monotonic() - began
            left = seconds - elapsed + self._seconds_without_cpu() - waited_before
            if left <= 0 or elapsed > MOST_DEADLINES * seconds:
                self.end()
                raise DecodeError("timeout", f"no answer in {seconds:g} s; the decoder was killed")
        try:
            kind, content = self._reader.read(functools.partial(self._read, until=time.monotonic() + self._longest))
            if kind not in kinds:
                raise MessageError(f"{kind} out of turn")
        except MessageError as error:
            self.end()
            raise DecodeError("crashed", f"the decoder sent no answer: {error}") from error
        return kind, content

    def _read(self, length: int, until: float) -> bytes:
        """Bytes of a message that has begun.

        Raises:
            BlockingIOError: the time is over, however steadily they trickle.
        """
        received = io.BytesIO()
        while (left := length - received.tell()) > 0:
            if time.monotonic() > until:
                raise BlockingIOError(errno.EAGAIN, "a message takes too long")
            part = self._socket.recv(min(left, BYTES_A_READ))
            if not part:
                raise EOFError
            received.write(part)
        return received.getvalue()

    def _cpu_seconds(self) -> float:
        """CPU time of the child and all its threads; 0 where it has ended."""
        try:
            return time.clock_gettime(~self.process_id << 3 | CPU_CLOCK_OF_A_PROCESS)
        except OSError:
            return 0.0

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


def opened(path: str | os.PathLike[str]) -> int:
    """A descriptor of a local file, for reading. It is looked at first: opening a FIFO or a device may hang, or do
    something.

    Raises:
        DecodeError: missing, unreadable, or "not_a_file".
    """
    try:
        file = -1
        if stat.S_ISREG(os.stat(path).st_mode):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if file >= 0 and stat.S_ISREG(os.fstat(file).st_mode):
            return file
    except FileNotFoundError as error:
        raise DecodeError("missing", "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DecodeError("unreadable", str(getattr(error, "strerror", error))) from error
    if file >= 0:
        os.close(file)
    raise DecodeError("not_a_file", "a folder, a device or a pipe")


def _warn_unconfined(ready: tuple[str, Any]) -> None:
    """Once in a process, and where the kernel refuses alone."""
    if ready[1]:
        _warn_once(str(ready[1]))


@functools.cache
def _warn_once(why: str) -> None:
    logger.warning("videos are decoded in a process without a filter of system calls (%s); see SECURITY.md", why[:200])
