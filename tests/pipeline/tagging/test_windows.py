"""How a video is cut into windows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tagging.windows import WindowGrid, unit_id, video_id, window_times


@settings(deadline=None)  # a loaded machine is not a failure
@given(st.floats(0.04, 600.0), st.floats(0.5, 10.0), st.floats(0.25, 10.0))
def test_windows_cover_the_video_and_keep_their_length(duration: float, window: float, hop: float) -> None:
    grid = WindowGrid(window, min(hop, window))
    spans = [grid.span(index, duration) for index in range(int(grid.count(duration)))]
    assert spans[0][0] == 0.0
    assert spans[-1][1] == pytest.approx(duration, abs=1e-4)
    assert all(later[0] <= earlier[1] + 1e-4 for earlier, later in itertools.pairwise(spans))
    lengths = [end - start for start, end in spans]
    assert lengths == pytest.approx([min(window, duration)] * len(spans), abs=1e-4)


def test_ids_change_with_the_content() -> None:
    assert video_id("a", "1") == video_id("a", "1")
    assert (
        len({video_id("a", "1"), video_id("a", "2"), video_id("b", "1"), unit_id("a", "1", 3), unit_id("a", "1", 4)})
        == 5
    )


def test_times_of_a_window_are_the_frames_of_the_uniform_test_clip() -> None:
    for start in (0.0, 2.0, 7.9):
        times = window_times((start, start + 2.0), 1 / 30, 16)
        first = start * 30
        frames = np.floor(times * 30 + 1e-6).astype(int)
        assert frames.tolist() == np.linspace(first, first + 59, 16).astype(int).tolist()
    assert window_times((0.0, 0.1), 1 / 30, 16).max() == pytest.approx(2 / 30)
    assert window_times((0.0, 0.04), 0.04, 4).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_the_window_nearest_to_a_time() -> None:
    grid = WindowGrid(2.0, 1.0)
    assert [grid.nearest(seconds, 4.5) for seconds in (0.0, 1.4, 1.6, 2.9, 4.5)] == [0, 0, 1, 2, 3]
    assert grid.nearest(0.9, 1.0) == 0
    assert WindowGrid(math.inf, 1.0).nearest(7.0, 9.0) == 0
