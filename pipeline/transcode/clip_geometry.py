"""Pure rules of what is stored of a video: frame rate, spans of clips, picture size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

LONGEST_RATE_DENOMINATOR = 1001  # 30000/1001 and the like
IRREGULAR_SHARE = 0.5  # a frame's step may differ so much from the median (time bases of 1 ms round 33.37 to 33)
MIN_SIDE = 16  # pixels; below this H.264 has less than one macroblock


def output_rate(times: npt.NDArray[np.float64], fps: float, target_fps: float | None) -> Fraction:
    """Frames per second to store: the video's own, or the target where that is less.

    Args:
        times: presentation time of every frame, seconds, ascending.
        fps: as stated by the header; 0 when it states none.
    """
    steps = np.diff(times)
    measured = [1 / step for step in (steps.mean(), np.median(steps)) if step > 0] if len(steps) else []
    plausible = fps > 0 and (not measured or any(0.9 < fps / rate < 1.1 for rate in measured))
    own = Fraction(fps if plausible else (measured or [1.0])[0]).limit_denominator(LONGEST_RATE_DENOMINATOR)
    if target_fps is None or target_fps >= own:
        return max(own, Fraction(1, LONGEST_RATE_DENOMINATOR))
    return Fraction(target_fps).limit_denominator(LONGEST_RATE_DENOMINATOR)


def is_regular(times: npt.NDArray[np.float64]) -> bool:
    """Whether frames follow each other in equal steps, give or take the rounding of the time base."""
    if len(times) < 3:
        return True
    steps = np.diff(times)
    median = float(np.median(steps))
    return bool((np.abs(steps - median) <= IRREGULAR_SHARE * median).all())


def clip_spans(
    duration_seconds: float, clip_seconds: float | None, hop_seconds: float | None
) -> list[tuple[float, float]]:
    """Start and end of every clip; together they cover the video when hops are no longer than clips."""
    if clip_seconds is None or duration_seconds <= clip_seconds:
        return [(0.0, duration_seconds)]
    hop = hop_seconds or clip_seconds
    starts = np.arange(0.0, duration_seconds - clip_seconds / 2, hop)
    ends = np.minimum(starts + clip_seconds, duration_seconds)
    if duration_seconds - ends[-1] < clip_seconds / 2:
        ends[-1] = duration_seconds
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height to store: aspect ratio kept, never enlarged, even."""
    scale = min(1.0, short_side / min(width, height))
    return _even(width * scale), _even(height * scale)


def _even(length: float) -> int:
    return max(MIN_SIDE, 2 * round(length / 2 - 1e-9))
