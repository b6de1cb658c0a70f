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

import numpy as np
import numpy.typing as npt

from pipeline.decode.child_process import IsolatedService
from pipeline.decode.config import Backend, DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.requests import DecodeViews, Probe, Validate, View

Path = str | os.PathLike[str]
Clip = npt.NDArray[np.uint8]
Bytes = bytes | bytearray | memoryview


class IsolatedDecoder(IsolatedService):
    """Decodes in a child process.

    Every method takes a local path and raises ``DecodeError`` for a video that cannot be used.
    """

    def __init__(self, config: DecodeConfig | None = None) -> None:
        self._input = _MemoryFile("video")
        self._output = _MemoryFile("frames")
        files = (self._input.file, self._output.file)
        super().__init__("pipeline.decode.child", config or DecodeConfig(), files)

    def probe(self, path: Path) -> VideoInfo:
        """Facts, from the headers, the packets and the first frame."""
        info: VideoInfo
        (info,) = self.answers(path, Probe())
        return info

    def validate(self, path: Path) -> VideoInfo:
        """Decode every frame with PyAV and refuse damage; the deadline holds for every few frames, not for all."""
        info: VideoInfo
        (info,) = self.answers(path, Validate())
        return info

    def decode(self, video: Path | Bytes, views: Sequence[View], outputs: Sequence[Clip] | None = None) -> list[Clip]:
        """All views (of one kind) of one video from one pass over it, each uint8 ``[T, H, W, 3]``.

        They are written into ``outputs`` where given. A frame that is missing for at most two numbers (wrong counts,
        empty packets) is its neighbour's repeat. When one library crashes or hangs, the other gets one try in a new
        child, unless ``backend`` is "pyav".

        Args:
            video: a path, or the bytes, which the child reads from an anonymous memory file.
        """
        layout = _Layout.of(views)
        self._output.reserve(layout.total_bytes)
        path = video if isinstance(video, str | os.PathLike) else self._input.store(video)
        backend = self.limits.backend
        request = DecodeViews(layout.views, layout.offsets, self._output.file, self._output.size, backend)
        try:
            list(self.answers(path, request))
        except DecodeError as error:
            if error.reason not in ("crashed", "timeout") or backend == "pyav":
                raise
            other: Backend = "pyav" if backend == "decord" else "decord"
            list(self.answers(path, dataclasses.replace(request, backend=other)))
        return layout.copied(self._output.pixels, outputs)

    def close(self) -> None:
        """End the child and give the shared memory back."""
        super().close()
        self._input.close()
        self._output.close()


class _MemoryFile:
    """Anonymous memory that a child inherits as an open file: limited by no mount's size, freed with its last user."""

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
        """Grow to ``size`` bytes, mapped as ``pixels``; it never shrinks, since views of a run are alike."""
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

    views: list[View]
    shapes: list[tuple[int, int, int, int]]
    offsets: list[int]
    total_bytes: int

    @classmethod
    def of(cls, views: Sequence[View]) -> _Layout:
        if not views or len({type(view) for view in views}) > 1:
            raise ValueError("views: must be one or more of the same kind; decode frame and time views separately")
        shapes = [(len(view.keys), *view.size, 3) for view in views]
        sizes = [math.prod(shape) for shape in shapes]
        offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        return cls(list(views), shapes, offsets, sum(sizes))

    def copied(self, pixels: Clip, outputs: Sequence[Clip] | None) -> list[Clip]:
        """The views, copied from the shared memory into ``outputs`` or new arrays: the next request overwrites it."""
        clips = list(outputs) if outputs is not None else [np.empty(shape, np.uint8) for shape in self.shapes]
        for clip, start, shape in zip(clips, self.offsets, self.shapes, strict=True):
            np.copyto(clip, pixels[start : start + math.prod(shape)].reshape(shape))
        return clips
