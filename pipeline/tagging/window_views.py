"""The views that the model sees of a window: the window's own frames, or the test protocol's of a whole video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.decode.clip_decoder import image_test_view
from pipeline.decode.config import ImageView, TimeView
from pipeline.media import Media
from pipeline.sampling import ViewConfig, center_crop, evaluation_crops, evaluation_indices
from pipeline.tagging.windows import WindowGrid, window_times


@dataclass(frozen=True)
class WholeVideo:
    """The published test protocol: one row a video, the mean over its views, instead of windows of time."""

    clips: int = 0
    """Temporal clips of a video (Kinetics 5, SSv2 1 or 2); 0: windows of time."""

    crops: int = 3
    """Spatial crops of a clip: 3 (left, centre, right) or 1 (centre)."""

    frame_stride: int = 4
    """Frames from one sampled frame to the next, at 30 frames per second, as in training."""

    def __post_init__(self) -> None:
        if self.clips < 0:
            raise ValueError(f"clips={self.clips}: must not be negative; 0 is for windows of time, Kinetics takes 5")
        if self.crops not in (1, 3):
            raise ValueError(f"crops={self.crops}: must be 1 or 3; the published protocols take 3")
        if self.frame_stride < 1:
            raise ValueError(f"frame_stride={self.frame_stride}: must be at least 1; give the stride of training")


@dataclass(frozen=True)
class WindowViews:
    """The views of every window of a job."""

    grid: WindowGrid
    input_size: tuple[int, int, int]
    """Frames, height and width of a view."""
    whole: WholeVideo = WholeVideo()
    image: ViewConfig | None = None
    """The view of an image, which has one window and one view; None for videos."""

    @property
    def media(self) -> Media:
        """What is tagged."""
        return "video" if self.image is None else "image"

    @property
    def per_window(self) -> int:
        """Views whose scores are averaged for one row."""
        return max(1, self.whole.clips * self.whole.crops) if self.image is None else 1

    @property
    def stacked_size(self) -> tuple[int, int, int]:
        """Frames of all views of a window, one view after the other, and their height and width."""
        frames, height, width = self.input_size
        return self.per_window * frames, height, width

    def of(self, unit: Mapping[str, Any], window_index: int) -> Sequence[TimeView | ImageView]:
        """The views of one window of a unit's video."""
        if self.image is not None:
            return [image_test_view(self.image)]
        if self.whole.clips:
            return self._protocol(unit)
        frames, height, width = self.input_size
        frame_seconds = unit["duration_seconds"] / unit["num_frames"]
        times = window_times(self.grid.span(window_index, unit["duration_seconds"]), frame_seconds, frames)
        return [TimeView(times, center_crop(unit["height"], unit["width"]), (height, width))]

    def _protocol(self, unit: Mapping[str, Any]) -> list[TimeView]:
        frames, height, width = self.input_size
        view = ViewConfig(num_frames=frames, frame_stride=self.whole.frame_stride, size=height)
        views = []
        for clip in range(self.whole.clips):
            indices = evaluation_indices(unit["num_frames"], unit["fps"], view, clip, self.whole.clips)
            # The middle of a frame's time, so that rounding cannot select its neighbour.
            times = (indices + 0.5) / unit["fps"]
            crops = evaluation_crops(unit["height"], unit["width"], self.whole.crops)
            views += [TimeView(np.asarray(times), crop, (height, width)) for crop in crops]
        return views


def grid_of(window_seconds: float, hop_seconds: float, whole: WholeVideo) -> WindowGrid:
    """Windows of time, or the one window that is the whole video."""
    return WindowGrid(math.inf, 1.0) if whole.clips else WindowGrid(window_seconds, hop_seconds)
