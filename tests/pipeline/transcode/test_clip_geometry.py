"""What is stored of a video: its size, its clips' spans, its frame rate."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.transcode.clip_geometry import clip_spans, output_rate, stored_size


@settings(deadline=None)
@given(st.integers(1, 8192), st.integers(1, 8192), st.sampled_from([64, 224, 256, 480]))
def test_stored_size(width: int, height: int, short_side: int) -> None:
    stored = stored_size(width, height, short_side)
    assert all(side % 2 == 0 and side >= 16 for side in stored)
    assert min(stored) <= max(short_side, 16)
    if min(width, height) >= 32:
        assert stored[0] <= width + 1
        assert stored[0] / stored[1] == pytest.approx(width / height, rel=0.1)


@settings(deadline=None)
@given(st.floats(0.05, 500), st.floats(0.5, 20), st.floats(0.1, 1))
def test_spans_cover_the_video(duration: float, clip: float, share: float) -> None:
    """With hops no longer than clips nothing of the footage is lost; no clip is too short or too long."""
    spans = clip_spans(duration, clip, clip * share)
    assert spans[0][0] == 0
    assert spans[-1][1] == pytest.approx(duration)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start <= end + 1e-9
    lengths = [end - start for start, end in spans]
    assert max(lengths) <= 1.5 * clip + 1e-9
    if duration > clip / 2:
        assert min(lengths) >= min(clip / 2, duration) - 1e-9


@pytest.mark.parametrize(
    ("fps", "times", "target", "expected"),
    [
        (30000 / 1001, [n * 1001 / 30000 for n in range(20)], None, Fraction(30000, 1001)),
        (0.0, [0, 0.1, 0.2, 0.3], None, Fraction(10)),
        (1000.0, [0, 0.04, 0.08], None, Fraction(25)),
        (25.0, [0.0], None, Fraction(25)),
        (0.0, [0.0], None, Fraction(1)),
        (30.0, [n / 30 for n in range(9)], 7.5, Fraction(15, 2)),
        (5.0, [n / 5 for n in range(9)], 7.5, Fraction(5)),
    ],
)
def test_output_rate(fps: float, times: list[float], target: float | None, expected: Fraction) -> None:
    assert output_rate(np.array(times), fps, target) == pytest.approx(expected, rel=1e-3)
