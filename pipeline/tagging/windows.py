"""How a video is cut into windows of time, and the ids of videos and units. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.schema import clip_id


@dataclass(frozen=True)
class WindowGrid:
    """How a video is cut into windows."""

    window_seconds: float
    """Length of a window."""
    hop_seconds: float
    """From the start of one window to the start of the next."""

    def count(self, duration_seconds: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Windows that cover videos of these lengths: at least one each.

        The last one is moved back to end with the video instead of being cut short, so that every window of a
        video that is long enough spans ``window_seconds`` and looks to the model like those it was trained on.
        """
        beyond_first = np.maximum(np.asarray(duration_seconds, np.float64) - self.window_seconds, 0.0)
        # Without the slack, a rounding error of 1e-16 s would add a window that repeats the one before.
        return 1 + np.ceil(beyond_first / self.hop_seconds - 1e-6).clip(min=0).astype(np.int64)

    def span(self, window_index: int, duration_seconds: float) -> tuple[float, float]:
        """Start and end of one window, in seconds."""
        start = min(window_index * self.hop_seconds, max(duration_seconds - self.window_seconds, 0.0))
        return start, min(start + self.window_seconds, duration_seconds)

    def nearest(self, seconds: float, duration_seconds: float) -> int:
        """The window whose middle is nearest to a time; the earlier one of two."""
        starts = np.arange(int(self.count(duration_seconds))) * self.hop_seconds
        starts = np.minimum(starts, max(duration_seconds - self.window_seconds, 0.0))
        length = min(self.window_seconds, duration_seconds)
        return int(np.argmin(np.abs(starts + length / 2 - seconds)))


def video_id(uri: str, content_version: str) -> int:
    """A video's int64: the same for the same content, another after the object changed."""
    return clip_id(uri, content_version, 0.0, math.inf)


def unit_id(uri: str, content_version: str, num_windows: int) -> int:
    """The int64 of the rows of one video that are written and committed together: all of its windows."""
    return clip_id(uri, content_version, 0.0, float(num_windows))


def window_times(span_seconds: tuple[float, float], frame_seconds: float, num_frames: int) -> npt.NDArray[np.float64]:
    """When to look into a window, float64 ``[T]`` in seconds: evenly from its start to the start of its last frame.

    At a constant frame rate these are the frames of the uniform test clip, ``linspace(first, first + span - 1)``
    truncated (SlowFast); a window shorter than ``num_frames`` frames repeats some.

    Args:
        frame_seconds: how long a frame of the video lasts on average.
        num_frames: T.
    """
    return np.linspace(span_seconds[0], max(span_seconds[1] - frame_seconds, span_seconds[0]), num_frames)
