"""Isolated decoding: any file in, frames or one reason out, and never a dead or hanging worker.

A persistent child process opens the videos (``pipeline.decode.child``). It has a deadline for every answer, a limit on
its memory, and is killed and replaced when it hangs, crashes or has grown; frames come back through shared memory.
Legend: T frames, H, W pixels; pictures are uint8 RGB ``[T, H, W, 3]``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.confinement.memory import Bytes, MemoryFile, SharedPixels
from pipeline.decode.child_process import IsolatedService
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.requests import DecodeViews, Probe, Validate, View
from pipeline.media import Media

Path = str | os.PathLike[str]
Clip = npt.NDArray[np.uint8]
CHILDREN: dict[Media, str] = {"video": "pipeline.decode.child", "image": "pipeline.decode.images.child"}
DECORD_CHILD = "pipeline.decode.decord_child"
"""Of videos, with the backend `decord`."""


class IsolatedDecoder(IsolatedService):
    """Decodes in a child process.

    Every method takes a local path and raises ``DecodeError`` for a video that cannot be used.

    Args:
        media: "image": every file is an image, of which ``ImageView`` are decoded.
    """

    def __init__(self, config: DecodeConfig | None = None, media: Media = "video") -> None:
        self._input = MemoryFile(media)
        self._output = SharedPixels()
        config = config or DecodeConfig()
        by_decord = media == "video" and config.backend == "decord"
        super().__init__(DECORD_CHILD if by_decord else CHILDREN[media], config, (VideoInfo,))

    def probe(self, path: Path) -> VideoInfo:
        """Facts, from the headers, the packets and the first frame."""
        return self._facts(path, Probe())

    def validate(self, path: Path) -> VideoInfo:
        """Decode every frame with PyAV and refuse damage; the deadline holds for every few frames, not for all."""
        return self._facts(path, Validate())

    def decode(self, video: Path | Bytes, views: Sequence[View], outputs: Sequence[Clip] | None = None) -> list[Clip]:
        """All views (of one kind) of one video from one pass over it, each uint8 ``[T, H, W, 3]``.

        They are written into ``outputs`` where given. A frame that is missing for at most two numbers (wrong counts,
        empty packets) is its neighbour's repeat. When a child crashes or hangs, PyAV gets one more try in a new one.

        Args:
            video: a path, or the bytes, which the child reads from an anonymous memory file.
        """
        layout = _Layout.of(views)
        self._output.reserve(layout.total_bytes)
        path = video if isinstance(video, str | os.PathLike) else self._input.store(video)
        request = DecodeViews(layout.views, layout.offsets, self.limits.backend)
        try:
            self.answer(path, request, str, [self._output.file])
        except DecodeError as error:
            if error.reason not in ("crashed", "timeout"):
                raise
            self.answer(path, dataclasses.replace(request, backend="pyav"), str, [self._output.file])
        return layout.copied(self._output.pixels, outputs)

    def _facts(self, path: Path, request: Probe | Validate) -> VideoInfo:
        info = self.answer(path, request, VideoInfo)
        if not info.num_frames:  # what has none is refused by a child that works
            raise self._distrusted("the decoder answered with a video without frames")
        return info

    def close(self) -> None:
        """End the child and give the shared memory back."""
        super().close()
        self._input.close()
        self._output.close()


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
