"""Decoding one stored clip, wherever its bytes are, with a reason instead of an error; and the test protocol's views.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, ImageView, TimeView
from pipeline.decode.decoder import Clip, IsolatedDecoder
from pipeline.media import Media
from pipeline.sampling import CropBox, Indices, ViewConfig, evaluation_crops, evaluation_indices
from pipeline.storage.blame import Blame, blame
from pipeline.storage.files import StorageError
from pipeline.storage.members import local_content

IMAGES_A_REQUEST = 32
BYTES_A_REQUEST = 64 * 2**20
"""A request is copied for the child; a larger image is a request of its own."""


class ClipDecoder:
    """Decodes rows of a prepared set; one child process."""

    def __init__(self, config: DecodeConfig, media: Media = "video") -> None:
        self.media = media
        self.decoder = IsolatedDecoder(config, media)

    def decode_all(
        self,
        clips: Sequence[Mapping[str, Any]],
        videos: Sequence[pa.LargeBinaryScalar],
        views: Sequence[Sequence[FrameView | ImageView]],
        outputs: Sequence[Sequence[Clip]],
    ) -> list[str]:
        """`decode` several rows: images whose bytes are in them by few requests, all else one by one."""
        if self.media == "video" or not all(video.is_valid for video in videos):
            return [self.decode(*row) for row in zip(clips, videos, views, outputs, strict=True)]
        images = [video.as_buffer() for video in videos]
        parts = [slice(*part) for part in _parts([image.size for image in images])]
        found = [self.decoder.decode_images(images[part], views[part], outputs[part]) for part in parts]
        return list(itertools.chain.from_iterable(found))

    def decode(
        self,
        clip: Mapping[str, Any],
        video: pa.LargeBinaryScalar,
        views: Sequence[FrameView | ImageView],
        outputs: Sequence[Clip],
    ) -> str:
        """Decode views into ``outputs``, each uint8 [T, H, W, 3].

        Args:
            clip: the row's facts (`schema.CLIP_SCHEMA`).
            video: its bytes; null where they stay at the clip's ``uri``.

        Returns:
            '' or the reason why it cannot be decoded: one of `DecodeError`'s.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            if video.is_valid:
                self.decoder.decode(video.as_buffer(), views, outputs)
            else:
                with local_content(clip["uri"], self.decoder.limits.max_bytes) as path:
                    self.decoder.decode(path, _within_span(views, clip), outputs)
        except DecodeError as error:
            return error.reason
        except StorageError as error:
            if blame(error) is not Blame.OBJECT and not error.missing:
                raise  # the storage is down, not the video bad: Ray retries the task, then the job stops
            return error.reason
        return ""


def training_view(view: ViewConfig, crop: CropBox, indices: Callable[[], Indices]) -> FrameView | ImageView:
    """A part of the picture, resized as the model takes it; of a video, of the frames that ``indices`` draws."""
    size = (view.size, view.size)
    if view.media == "image":
        return ImageView(crop, size, view.interpolation)
    return FrameView(indices(), crop, size)


def protocol_views(
    clip: Mapping[str, Any], view: ViewConfig, clips: int, crops: int
) -> Sequence[FrameView | ImageView]:
    """The test protocol's views of one stored clip: ``clips`` over its length, each in ``crops`` parts of the picture.

    In the order of the evaluation's column ``view``: clip * crops + crop. An image has one.
    """
    if view.media == "image":
        return [image_test_view(view)]
    boxes = evaluation_crops(clip["height"], clip["width"], crops)
    return [
        FrameView(evaluation_indices(clip["num_frames"], clip["fps"], view, number, clips), box, (view.size, view.size))
        for number in range(clips)
        for box in boxes
    ]


def image_test_view(view: ViewConfig) -> ImageView:
    """The short side resized, then the centre: MAE's test transform (util/datasets.py), 256 for a side of 224."""
    return ImageView(None, (view.size, view.size), view.interpolation, int(view.size / view.crop_share))


def _parts(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive images that go into one request."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and (number - start == IMAGES_A_REQUEST or total + size > BYTES_A_REQUEST):
            yield start, number
            start, total = number, 0
        total += size
    if sizes:
        yield start, len(sizes)


def _within_span(
    views: Sequence[FrameView | ImageView], clip: Mapping[str, Any]
) -> Sequence[FrameView | TimeView | ImageView]:
    """Views of a clip whose bytes are the whole original: by time, unless the clip begins with it."""
    if clip["start_seconds"] == 0:
        return views
    return [
        TimeView(clip["start_seconds"] + (view.frame_indices + 0.5) / clip["fps"], view.crop, view.size)
        for view in views
        if isinstance(view, FrameView)
    ]
