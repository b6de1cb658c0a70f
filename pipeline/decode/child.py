"""What the decoder's child does for each type of request; the frames of views go into shared memory.

Legend: T frames, H, W pixels; pictures are RGB uint8.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.confinement.memory import SharedView
from pipeline.decode.child_loop import Handler, Replies, serve
from pipeline.decode.config import DecodeError, VideoInfo
from pipeline.decode.requests import DecodeViews, Probe, Validate, View
from pipeline.decode.video_file import Picture, Video

Read = Callable[[Sequence[Any], float], Iterator[tuple[Any, Picture]]]
"""Frames' numbers or times, ascending and unique, and a scale → each with its picture."""
OtherReader = Callable[[Video], Read | None]
"""Another library's way to read frames by number; None for a video that it would get wrong."""


def render(
    video: Video,
    views: Sequence[View],
    outputs: Sequence[npt.NDArray[np.uint8]],
    other_reader: OtherReader | None = None,
) -> str:
    """Fill ``outputs`` (one ``[T, H, W, 3]`` a view) from one pass over the video; returns who decoded it."""
    if views[0].keys.dtype.kind == "f":
        _render(video.read_times, video, views, outputs)
        return "pyav"
    read = other_reader(video) if other_reader is not None else None
    if read is not None:
        try:
            _render(read, video, views, outputs)
        except DecodeError:
            pass  # PyAV decides: decord gives up on videos that newer decoders read
        else:
            return "decord"
    _render(video.read, video, views, outputs)
    return "pyav"


def _render(read: Read, video: Video, views: Sequence[View], outputs: Sequence[npt.NDArray[np.uint8]]) -> None:
    # Scale → frame's index or time → where it goes: number of the view, and of the frame within it.
    uses: dict[float, dict[float, list[tuple[int, int]]]] = {}
    for number, view in enumerate(views):
        at_scale = uses.setdefault(_source_scale(video, view), {})
        for frame, key in enumerate(view.keys.tolist()):
            at_scale.setdefault(key, []).append((number, frame))
    for scale, at_scale in uses.items():
        for key, picture in read(sorted(at_scale), scale):
            for number, frame in at_scale[key]:
                _cut_out(picture, views[number], scale, outputs[number][frame])


def _cut_out(picture: Picture, view: View, scale: float, output: Picture) -> None:
    """Crop and resize into ``output``: bilinear, by area where several pixels become one."""
    height, width = picture.shape[:2]
    top, left, box_height, box_width = view.crop or (0, 0, round(height / scale), round(width / scale))
    top, left = min(round(top * scale), height - 1), min(round(left * scale), width - 1)
    box = picture[top : top + max(1, round(box_height * scale)), left : left + max(1, round(box_width * scale))]
    if box.shape == output.shape:
        np.copyto(output, box)
        return
    shrinks = min(box.shape[0] / output.shape[0], box.shape[1] / output.shape[1]) >= 2
    cv2.resize(box, output.shape[1::-1], output, 0, 0, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _source_scale(video: Video, view: View) -> float:
    """How much the whole picture may shrink while it is decoded: 1, 1/2, 1/4, ..., never below what the view shows.

    Decided for each view alone, so that its pixels do not depend on what else is decoded with it.
    """
    _, _, box_height, box_width = view.crop or (0, 0, *video.shown_size)
    needed = max(view.size[0] / box_height, view.size[1] / box_width)
    return 2.0 ** min(0, math.ceil(math.log2(needed)))


def probe(path: str, request: Probe, replies: Replies) -> VideoInfo:
    """See ``Probe``."""
    with Video(path, replies.limits, replies.progress) as video:
        return video.info()


def validate(path: str, request: Validate, replies: Replies) -> VideoInfo:
    """See ``Validate``.

    Raises:
        DecodeError: "damaged", where the decoder reports an error, a corrupt frame, or frames that never came.
    """
    with Video(path, replies.limits, replies.progress) as video:
        info, count = video.info(), 0
        for _, damage in video.checked_frames():
            if damage:
                raise DecodeError.quoting("damaged", f"frame {count}: {damage}")
            count += 1
    return dataclasses.replace(info, num_frames=count)


def decode(path: str, request: DecodeViews, replies: Replies, other_reader: OtherReader | None = None) -> str:
    """See ``DecodeViews``."""
    outputs = request.outputs(_memory.pixels(*replies.memory))
    # No progress is reported: a view for training has one deadline for all of it.
    with Video(path, replies.limits) as video:
        try:
            return render(video, request.views, outputs, other_reader)
        except cv2.error as error:
            raise DecodeError.quoting("damaged", f"cv2: {error}") from error


_memory = SharedView()
HANDLERS: dict[type, Handler] = {Probe: probe, Validate: validate, DecodeViews: decode}


def main(connection_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``."""
    cv2.setNumThreads(1)
    serve(connection_file, HANDLERS)
