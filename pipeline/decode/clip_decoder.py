"""Decoding one stored clip, wherever its bytes are, with a reason instead of an error; and the test protocol's views.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, TimeView
from pipeline.decode.decoder import Clip, IsolatedDecoder
from pipeline.sampling import ViewConfig, evaluation_crops, evaluation_indices
from pipeline.storage.files import StorageError, local_copy


class ClipDecoder:
    """Decodes rows of a prepared set; one child process."""

    def __init__(self, config: DecodeConfig) -> None:
        self.decoder = IsolatedDecoder(config)

    def decode(
        self,
        clip: Mapping[str, Any],
        video: pa.LargeBinaryScalar,
        views: Sequence[FrameView],
        outputs: Sequence[Clip],
    ) -> str:
        """Decode views into ``outputs``, each uint8 [T, H, W, 3].

        Args:
            clip: the row's facts (`schema.CLIP_SCHEMA`).
            video: its bytes; null where they stay at the clip's ``uri``.

        Returns:
            '' or the reason why it cannot be decoded: one of `DecodeError`'s, or "missing" for a missing object.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            if video.is_valid:
                self.decoder.decode(video.as_buffer(), views, outputs)
            else:
                with local_copy(clip["uri"]) as path:
                    self.decoder.decode(path, _within_span(views, clip), outputs)
        except DecodeError as error:
            return error.reason
        except StorageError as error:
            if not error.missing:
                raise  # the storage is down, not the video bad: Ray retries the task, then the job stops
            return "missing"
        return ""


def protocol_views(clip: Mapping[str, Any], view: ViewConfig, clips: int, crops: int) -> list[FrameView]:
    """The test protocol's views of one stored clip: ``clips`` over its length, each in ``crops`` parts of the picture.

    In the order of the evaluation's column ``view``: clip * crops + crop.
    """
    boxes = evaluation_crops(clip["height"], clip["width"], crops)
    return [
        FrameView(evaluation_indices(clip["num_frames"], clip["fps"], view, number, clips), box, (view.size, view.size))
        for number in range(clips)
        for box in boxes
    ]


def _within_span(views: Sequence[FrameView], clip: Mapping[str, Any]) -> Sequence[FrameView | TimeView]:
    """Views of a clip whose bytes are the whole original: by time, unless the clip begins with it."""
    if clip["start_seconds"] == 0:
        return views
    return [
        TimeView(clip["start_seconds"] + (view.frame_indices + 0.5) / clip["fps"], view.crop, view.size)
        for view in views
    ]
