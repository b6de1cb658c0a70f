"""Isolated decoding: any file in, frames or one reason out, and never a dead or hanging worker.

A persistent child process opens the videos (``pipeline.decode.child``). It has a deadline for every answer, a limit on
its memory, and is killed and replaced when it hangs, crashes or has grown; frames come back through shared memory.
Legend: T frames, H, W pixels; pictures are uint8 RGB ``[T, H, W, 3]``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.confinement.memory import Bytes, MemoryFile, SharedPixels
from pipeline.confinement.messages import Refusal
from pipeline.decode.child_process import IsolatedService
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.requests import DecodeImages, DecodeViews, Probe, Validate, View
from pipeline.media import Media

Path = str | os.PathLike[str]
Clip = npt.NDArray[np.uint8]
CHILDREN: dict[Media, str] = {"video": "pipeline.decode.child", "image": "pipeline.decode.images.child"}
DECORD_CHILD = "pipeline.decode.decord_child"
"""Of videos, with the backend `decord`."""
LOST = ("crashed", "timeout")
"""Reasons that a lost child leaves behind: another try is worth it."""


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
        request = DecodeViews.of(views, self.limits.backend)
        self._output.reserve(request.offsets[-1])
        path = video if isinstance(video, str | os.PathLike) else self._input.store(video)
        try:
            self.answer(path, request, str, [self._output.file])
        except DecodeError as error:
            if error.reason not in LOST:
                raise
            self.answer(path, dataclasses.replace(request, backend="pyav"), str, [self._output.file])
        return _copied(request.outputs(self._output.pixels), outputs)

    def decode_images(
        self, images: Sequence[Bytes], views: Sequence[Sequence[View]], outputs: Sequence[Sequence[Clip]]
    ) -> list[str]:
        """Views of several images, in one request; a message for each costs a fifth of what decoding it does.

        Whatever kills or hangs the child, each image then gets a request of its own, as in `decode`.

        Returns:
            For each image '' or the reason why it cannot be decoded; its ``outputs`` are as they were then.
        """
        parts: list[DecodeViews] = []
        for of_image in views:
            parts.append(DecodeViews.of(of_image, self.limits.backend, parts[-1].offsets[-1] if parts else 0))
        self._output.reserve(parts[-1].offsets[-1])
        request = DecodeImages([memoryview(image).nbytes for image in images], parts)
        try:
            answer = self.answer(self._input.store(*images), request, str, [self._output.file])
            reasons = self._believed(answer.split("\n"), len(images))
        except DecodeError:
            return [self._reason(*each) for each in zip(images, views, outputs, strict=True)]
        for reason, part, clips in zip(reasons, parts, outputs, strict=True):
            if not reason:
                _copied(part.outputs(self._output.pixels), clips)
        return reasons

    def _reason(self, image: Bytes, views: Sequence[View], outputs: Sequence[Clip]) -> str:
        """Decode one image alone."""
        try:
            self.decode(image, views, outputs)
        except DecodeError as error:
            return error.reason
        return ""

    def _believed(self, reasons: list[str], count: int) -> list[str]:
        """The reasons, where a child that works may give them."""
        if len(reasons) != count or not all(not reason or Refusal(reason, "").is_plausible() for reason in reasons):
            raise self._distrusted("the decoder answered with no reasons")
        return reasons

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


def _copied(found: Sequence[Clip], outputs: Sequence[Clip] | None) -> list[Clip]:
    """The views, copied from the shared memory into ``outputs`` or new arrays: the next request overwrites it."""
    clips = list(outputs) if outputs is not None else [np.empty_like(clip) for clip in found]
    for clip, shared in zip(clips, found, strict=True):
        np.copyto(clip, shared)
    return clips
