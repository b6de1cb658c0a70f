"""What the decoder's child does for each type of request; the frames of views go into shared memory.

Legend: T frames, H, W pixels; pictures are RGB uint8.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.decode.child_loop import Replies, serve
from pipeline.decode.config import DecodeError, VideoInfo
from pipeline.decode.requests import DecodeViews, Probe, Validate, View
from pipeline.decode.video_file import Picture, Video, scaled

try:
    import decord
except (ImportError, OSError):  # no wheel for this platform
    decord = None

BATCH_BYTES = 64 * 2**20
# decord 0.6 is silently wrong on program streams without index and on AVIs with B-frames, and has no newer codec.
DECORD_CONTAINERS = ("mov", "matroska", "avi")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4")


def decord_is_right(video: Video) -> bool:
    """True for the containers and codecs that decord 0.6 decodes correctly, in the absence of damage."""
    return (
        decord is not None
        and video.container_name.startswith(DECORD_CONTAINERS)
        and not video.counts_only
        and video.codec.name in DECORD_CODECS
        and len(video.container.streams.video) == 1
        and video.pixel_aspect == 1
        and not video.orientation.mirrored
        and not video.has_fields
    )


def read_by_decord(video: Video, indices: Sequence[int], scale: float) -> Iterator[tuple[int, Picture]]:
    """Like ``Video.read``, by decord."""
    size = {}
    if scale != 1:  # only then: the size shown needs a frame decoded by PyAV
        size["height"], size["width"] = (scaled(side, scale) for side in video.shown_size)
    frames_a_batch = max(1, int(BATCH_BYTES / (3 * video.coded_height * video.coded_width * scale * scale)))
    try:
        reader = decord.VideoReader(video.path, num_threads=1, **size)
        if len(reader) <= indices[-1]:
            raise DecodeError("missing_frames", f"decord counts {len(reader)} frames")
        for start in range(0, len(indices), frames_a_batch):
            batch = indices[start : start + frames_a_batch]
            yield from zip(batch, reader.get_batch(batch).asnumpy(), strict=True)
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        raise DecodeError("damaged", f"decord: {str(error).splitlines()[-1] if str(error) else 'failed'}") from error


def render(video: Video, views: Sequence[View], outputs: Sequence[npt.NDArray[np.uint8]], backend: str) -> str:
    """Fill ``outputs`` (one ``[T, H, W, 3]`` a view) from one pass over the video; returns who decoded it."""
    if views[0].keys.dtype.kind == "f":
        _render(video.read_times, video, views, outputs)
        return "pyav"
    if backend == "decord" and decord_is_right(video):
        try:
            _render(functools.partial(read_by_decord, video), video, views, outputs)
        except DecodeError:
            pass  # PyAV decides: decord gives up on videos that newer decoders read
        else:
            return "decord"
    _render(video.read, video, views, outputs)
    return "pyav"


def _render(
    read: Callable[..., Iterator[tuple[Any, Picture]]],
    video: Video,
    views: Sequence[View],
    outputs: Sequence[npt.NDArray[np.uint8]],
) -> None:
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


def decode(path: str, request: DecodeViews, replies: Replies) -> str:
    """See ``DecodeViews``."""
    pixels = _shared_memory(request.memory_file, request.memory_bytes)
    outputs = []
    for view, start in zip(request.views, request.offsets, strict=True):
        shape = (len(view.keys), *view.size, 3)
        outputs.append(pixels[start : start + math.prod(shape)].reshape(shape))
    # No progress is reported: a view for training has one deadline for all of it.
    with Video(path, replies.limits) as video:
        try:
            return render(video, request.views, outputs, request.backend)
        except cv2.error as error:
            raise DecodeError.quoting("damaged", f"cv2: {error}") from error


@functools.lru_cache(maxsize=1)  # mapping it again for every request would fault all its pages in again
def _shared_memory(file: int, size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


def main(connection_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``."""
    cv2.setNumThreads(1)
    if decord is not None:
        decord.logging.set_level(decord.logging.QUIET)
    serve(connection_file, {Probe: probe, Validate: validate, DecodeViews: decode})
