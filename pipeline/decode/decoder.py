"""Isolated decoding: any file in, frames or one reason out, and never a dead or hanging worker.

A persistent child process opens the videos (``pipeline.decode.child``). It has a deadline for every answer, a limit on
its memory, and is killed and replaced when it hangs, crashes or has grown; frames come back through shared memory.
Legend: T frames, H, W pixels; pictures are uint8 RGB ``[T, H, W, 3]``.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.decode.child_process import ChildProcess
from pipeline.decode.config import Backend, DecodeConfig, DecodeError, FrameView, TimeView, VideoInfo

Clip = npt.NDArray[np.uint8]
Bytes = bytes | bytearray | memoryview

__all__ = ["DecodeConfig", "DecodeError", "FrameView", "IsolatedDecoder", "TimeView", "VideoInfo"]


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
        self._child: ChildProcess | None = self._new_child()

    def probe(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Facts, from the headers, the packets and the first frame."""
        return VideoInfo(**self._ask("probe", path))

    def validate(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Decode every frame with PyAV and refuse damage; the deadline holds for every few frames, not for all."""
        return VideoInfo(**self._ask("validate", path))

    def decode(
        self,
        path: str | os.PathLike[str],
        views: Sequence[FrameView | TimeView],
        outputs: Sequence[Clip] | None = None,
    ) -> list[Clip]:
        """All views (of one kind) of one video from one pass over it, each uint8 ``[T, H, W, 3]``.

        They are written into ``outputs`` where given. A frame that is missing for at most two numbers (wrong counts,
        empty packets) is its neighbour's repeat. When one library crashes or hangs, the other gets one try in a new
        child, unless ``backend`` is "pyav".
        """
        layout = _Layout.of(views)
        try:
            return self._decode(path, layout, self.config.backend, outputs)
        except DecodeError as error:
            if error.reason not in ("crashed", "timeout") or self.config.backend == "pyav":
                raise
        return self._decode(path, layout, "pyav" if self.config.backend == "decord" else "decord", outputs)

    def decode_bytes(
        self, video: Bytes, views: Sequence[FrameView | TimeView], outputs: Sequence[Clip] | None = None
    ) -> list[Clip]:
        """Like ``decode``, for a video in memory; the child reads it from an anonymous memory file."""
        return self.decode(self._input.store(video), views, outputs)

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
        backend: Backend,
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
            answers = child.answers_to((kind, os.path.abspath(path), details))
            status, *answer = next(message for message in answers if message[0] != "progress")
        except DecodeError:
            self.children_lost += 1
            self._child = None
            raise
        child.answers += 1
        if child.answers >= self.config.videos_per_child or answer[-1] > self.config.memory_bytes // 2:
            child.end()
            self._child = None
        if status == "rejected":
            raise DecodeError(answer[0], answer[1])
        return answer[0]

    def _new_child(self) -> ChildProcess:
        files = (self._output.file, self._input.file)
        return ChildProcess("pipeline.decode.child", self.config, self.config.deadline_seconds, files)


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
