"""Isolated decoding: any file in, frames or one reason out, and never a dead or hanging worker.

A persistent child process opens the videos (``pipeline.decode_child``). It has a deadline for every answer, a limit on
its memory, and is killed and replaced when it hangs, crashes or has grown; frames come back through shared memory.
Legend: T frames, H, W pixels; pictures are uint8 RGB ``[T, H, W, 3]``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.decode_config import Backend, DecodeConfig, DecodeError, FrameView, TimeView, VideoInfo

Clip = npt.NDArray[np.uint8]
Bytes = bytes | bytearray | memoryview

__all__ = ["DecodeConfig", "DecodeError", "FrameView", "IsolatedDecoder", "TimeView", "VideoInfo"]

# The package itself (Ray, Arrow) is not imported by the child: it starts in 0.2 s instead of 1.5 s.
CHILD = """
import sys, types
package = types.ModuleType("pipeline")
package.__path__ = [sys.argv[1]]
sys.modules["pipeline"] = package
from pipeline.decode_child import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
START_SECONDS = 60.0
KILL_SECONDS = 5.0
PATIENCE = 10


class IsolatedDecoder:
    """Decodes in a child process; safe to keep for millions of videos. Use from one thread at a time.

    Every method takes a local path and raises ``DecodeError`` for a video that cannot be used. Closed by ``close``, by
    ``with``, or with the object.
    """

    def __init__(self, config: DecodeConfig | None = None) -> None:
        self.config = config or DecodeConfig()
        self.children_lost = 0
        self._input = _MemoryFile("video")
        self._output = _MemoryFile("frames")
        self._child: _Child | None = self._new_child()

    def probe(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Facts, from the headers, the packets and the first frame."""
        return VideoInfo(**self._ask("probe", path))

    def validate(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Decode every frame with PyAV and refuse damage; the deadline holds for every few frames, not for all."""
        return VideoInfo(**self._ask("validate", path))

    def frame_times(self, path: str | os.PathLike[str]) -> npt.NDArray[np.float64]:
        """Presentation time of every frame in seconds after the first. float64 [frames]"""
        times: npt.NDArray[np.float64] = self._ask("times", path)
        return times

    def decode(
        self,
        path: str | os.PathLike[str],
        views: Sequence[FrameView | TimeView],
        outputs: Sequence[Clip] | None = None,
    ) -> list[Clip]:
        """All views (of one kind) of one video from one pass over it, each uint8 ``[T, H, W, 3]``.

        They are written into ``outputs`` where given. A frame that is missing for at most two numbers (wrong counts,
        empty packets) is its neighbour's repeat. When decord crashes or hangs, PyAV gets one try in a new child.
        """
        layout = _Layout.of(views)
        try:
            return self._decode(path, layout, None, outputs)
        except DecodeError as error:
            if error.reason not in ("crashed", "timeout") or self.config.backend == "pyav":
                raise
        return self._decode(path, layout, "pyav", outputs)

    def decode_bytes(
        self, video: Bytes, views: Sequence[FrameView | TimeView], outputs: Sequence[Clip] | None = None
    ) -> list[Clip]:
        """Like ``decode``, for a video in memory; the child reads it from an anonymous memory file."""
        return self.decode(self._input.store(video), views, outputs)

    def probe_bytes(self, video: Bytes) -> VideoInfo:
        """Like ``probe``, for a video in memory."""
        return self.probe(self._input.store(video))

    def close(self) -> None:
        """End the child and give the shared memory back."""
        if self._child is not None:
            self._child.end()
        self._child = None
        self._input.close()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()

    def _decode(
        self,
        path: str | os.PathLike[str],
        layout: _Layout,
        backend: Backend | None,
        outputs: Sequence[Clip] | None,
    ) -> list[Clip]:
        self._output.reserve(layout.total_bytes)
        details = {
            "views": layout.views,
            "offsets": layout.offsets,
            "bytes": self._output.size,
            "backend": backend,
        }
        self._ask("decode", path, details)
        return layout.copied(self._output.pixels, outputs)

    def _ask(self, kind: str, path: str | os.PathLike[str], details: Any = None) -> Any:
        child = self._child or self._new_child()
        self._child = child
        try:
            status, *answer = child.ask((kind, os.path.abspath(path), details))
        except DecodeError:
            self.children_lost += 1
            self._child = None
            raise
        if child.answers >= self.config.videos_per_child or answer[-1] > self.config.memory_bytes // 2:
            child.end()
            self._child = None
        if status == "rejected":
            raise DecodeError(answer[0], answer[1])
        return answer[0]

    def _new_child(self) -> _Child:
        return _Child(self.config, self._input.file, self._output.file)


class _Child:
    """One decoding process; starts at once, is waited for at the first request."""

    def __init__(self, config: DecodeConfig, input_file: int, output_file: int) -> None:
        self.deadline_seconds = config.deadline_seconds
        self.answers = 0
        self._ready = False
        mine, theirs = socket.socketpair()
        with theirs:
            arguments = [str(Path(__file__).parent), str(theirs.fileno()), str(output_file)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, *arguments],
                pass_fds=(theirs.fileno(), input_file, output_file),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "DECORD_EOF_RETRY_MAX": "64"},
            )
        self._connection = Connection(mine.detach())
        self._scheduling: int | None = None
        with contextlib.suppress(OSError):
            self._scheduling = os.open(f"/proc/{self._process.pid}/schedstat", os.O_RDONLY)
        self._connection.send(config)

    def ask(self, request: tuple[str, str, Any]) -> Any:
        """Send a request and wait for its answer; "progress" in between gives a new deadline."""
        try:
            if not self._ready:
                self._receive(START_SECONDS)
                self._ready = True
            self._connection.send(request)
            answer = self._receive(self.deadline_seconds)
            while answer[0] == "progress":
                answer = self._receive(self.deadline_seconds)
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error
        self.answers += 1
        return answer

    def end(self) -> None:
        """Kill: the child holds nothing worth a farewell."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel on a dead network file system
            self._process.wait(KILL_SECONDS)
        self._connection.close()
        if self._scheduling is not None:
            os.close(self._scheduling)
            self._scheduling = None

    def _receive(self, seconds: float) -> Any:
        """Wait, not counting the time in which the child had no CPU to run on: a busy machine is no hanging video."""
        began, waited_before = time.monotonic(), self._seconds_without_cpu()
        left = seconds
        while not self._connection.poll(max(left, 0.01)):
            elapsed = time.monotonic() - began
            left = seconds - elapsed + self._seconds_without_cpu() - waited_before
            if left <= 0 or elapsed > PATIENCE * seconds:
                self.end()
                raise DecodeError("timeout", f"no answer in {seconds:g} s; the decoder was killed")
        return self._connection.recv()

    def _seconds_without_cpu(self) -> float:
        """How long the child was ready to run and had to wait; 0 where the kernel keeps no count."""
        if self._scheduling is None:
            return 0.0
        try:
            return int(os.pread(self._scheduling, 128, 0).split()[1]) / 1e9
        except (OSError, IndexError):  # the process has ended
            return 0.0

    def _lost(self) -> DecodeError:
        self.end()
        code = self._process.returncode or 0
        if code == -signal.SIGALRM:
            return DecodeError("timeout", "the decoder ended itself after its deadline")
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("crashed", f"the decoder died of {ending}")


class _MemoryFile:
    """Anonymous memory that a child inherits as an open file; bound by no mount's size, gone with its last user."""

    def __init__(self, name: str) -> None:
        self.file = os.memfd_create(name)
        self.size = 0
        self.pixels: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def store(self, content: Bytes) -> str:
        """Replace the content; returns the path under which a child opens it."""
        view = memoryview(content).cast("B")
        os.ftruncate(self.file, len(view))
        written = 0
        while written < len(view):  # Linux writes at most 2 GiB at once
            written += os.pwrite(self.file, view[written:], written)
        return f"/proc/self/fd/{self.file}"

    def reserve(self, size: int) -> None:
        """Make room for ``size`` bytes and map them as ``pixels``."""
        if size > self.size:
            self.size = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.file, self.size)
            self.pixels = np.frombuffer(mmap.mmap(self.file, self.size), np.uint8)

    def close(self) -> None:
        self.pixels = np.empty(0, np.uint8)
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where each view's frames lie in the shared memory."""

    views: list[FrameView | TimeView]
    shapes: list[tuple[int, int, int, int]]
    offsets: list[int]
    total_bytes: int

    @classmethod
    def of(cls, views: Sequence[FrameView | TimeView]) -> _Layout:
        if not views or len({type(view) for view in views}) > 1:
            raise ValueError("views: must be one or more of one kind; decode frame and time views apart")
        shapes = [(len(view.keys), *view.size, 3) for view in views]
        sizes = [math.prod(shape) for shape in shapes]
        offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        return cls(list(views), shapes, offsets, sum(sizes))

    def copied(self, pixels: Clip, outputs: Sequence[Clip] | None) -> list[Clip]:
        """The views out of the shared memory, into ``outputs`` or arrays of their own."""
        clips = list(outputs) if outputs is not None else [np.empty(shape, np.uint8) for shape in self.shapes]
        for clip, start, shape in zip(clips, self.offsets, self.shapes, strict=True):
            np.copyto(clip, pixels[start : start + math.prod(shape)].reshape(shape))
        return clips
