"""The decoder's child with decord for frames by number (`decode.backend=decord`), and PyAV for all else.

decord's wheel brings an FFmpeg of its own, 4.1, which opens files by name and decodes in a thread: this child may do
both. Nothing else imports decord: installations without it lack this backend, and nothing more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import cv2
import decord

from pipeline.decode.child import HANDLERS, Read, decode
from pipeline.decode.child_loop import Replies, serve
from pipeline.decode.config import DecodeError
from pipeline.decode.media import begins_as_container
from pipeline.decode.requests import DecodeViews
from pipeline.decode.video_file import Picture, Video, scaled

BATCH_BYTES = 64 * 2**20
# decord 0.6 is silently wrong on program streams without index, H.264 and B-frames in AVI, MPEG-4 with B-frames and
# streams that do not begin with a key frame: single frames are others than those of the whole. It has no newer codec.
DECORD_CONTAINERS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")


def reader_of(video: Video) -> Read | None:
    """decord's frames of a video, for the containers and codecs that it decodes correctly in the absence of damage."""
    is_right = (
        video.container_name.startswith(DECORD_CONTAINERS)
        and not video.counts_only
        and video.codec.name in DECORD_CODECS
        and len(video.container.streams.video) == 1
        and video.pixel_aspect == 1
        and not video.orientation.mirrored
        and not video.has_fields
        and not video.begins_amid_gop
        and begins_as_container(video.path)
    )
    return functools.partial(read_by_decord, video) if is_right else None


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


def decode_views(path: str, request: DecodeViews, replies: Replies) -> str:
    """See ``DecodeViews``."""
    return decode(path, request, replies, reader_of if request.backend == "decord" else None)


def main(connection_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``."""
    cv2.setNumThreads(1)
    decord.logging.set_level(decord.logging.QUIET)
    serve(connection_file, {**HANDLERS, DecodeViews: decode_views}, starts_threads=True, opens_files=True)
