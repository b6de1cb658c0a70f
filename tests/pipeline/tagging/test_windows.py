"""The plan of a tagging job: every window once, in full chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tagging.windows import PROBED_SCHEMA, UNIT_SCHEMA, WindowGrid, plan_units, video_id, window_times

DURATIONS = st.lists(st.one_of(st.none(), st.floats(0.04, 60.0)), max_size=12)


def _probed(durations: list[float | None]) -> pa.Table:
    rows = [
        {
            "video_id": video_id(f"video{number}", "1"),
            "uri": f"video{number}",
            "content_version": "1",
            "duration_seconds": duration,
            "status": "ok" if duration is not None else "corrupt",
            "message": "",
        }
        for number, duration in enumerate(durations)
    ]
    return pa.Table.from_pylist(rows, schema=PROBED_SCHEMA)


@settings(deadline=None)  # a loaded machine is not a failure
@given(DURATIONS, st.integers(1, 9), st.floats(0.5, 4.0), st.floats(0.25, 4.0))
def test_every_window_is_in_exactly_one_unit_and_chunks_are_full(
    durations: list[float | None], windows_per_chunk: int, window_seconds: float, hop_seconds: float
) -> None:
    grid = WindowGrid(window_seconds, hop_seconds)
    units = plan_units(_probed(durations), grid, windows_per_chunk)
    assert units.schema == UNIT_SCHEMA
    planned: dict[str, list[int]] = {f"video{number}": [] for number in range(len(durations))}
    sizes: dict[int, int] = {}
    for unit in units.to_pylist():
        first, number = unit["first_window"], unit["num_windows"]
        planned[unit["uri"]] += range(first, first + number)
        if number:
            sizes[unit["chunk"]] = sizes.get(unit["chunk"], 0) + number
    for number, duration in enumerate(durations):
        expected = 0 if duration is None else int(grid.count(duration))
        assert planned[f"video{number}"] == list(range(expected))
    assert sorted(sizes) == list(range(len(sizes)))
    assert all(size == windows_per_chunk for size in list(sizes.values())[:-1])
    assert units["chunk"].to_pylist() == sorted(units["chunk"].to_pylist())
    assert len(set(units["unit_id"].to_pylist())) == len(units)
    assert {unit["uri"] for unit in units.to_pylist()} == set(planned)


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


def test_the_documented_example_of_a_plan() -> None:
    units = plan_units(_probed([3.0, 6.0, 1.0]), WindowGrid(1.0, 1.0), 4)
    placed = [
        (unit["chunk"], unit["uri"], unit["first_window"], unit["num_windows"])
        for unit in units.select(["chunk", "uri", "first_window", "num_windows"]).to_pylist()
    ]
    assert placed == [(0, "video0", 0, 3), (0, "video1", 0, 1), (1, "video1", 1, 4), (2, "video1", 5, 1),
                      (2, "video2", 0, 1)]  # fmt: skip


def test_times_of_a_window_are_the_frames_of_the_uniform_test_clip() -> None:
    for start in (0.0, 2.0, 7.9):
        times = window_times((start, start + 2.0), 1 / 30, 16)
        first = start * 30
        frames = np.floor(times * 30 + 1e-6).astype(int)
        assert frames.tolist() == np.linspace(first, first + 59, 16).astype(int).tolist()
    assert window_times((0.0, 0.1), 1 / 30, 16).max() == pytest.approx(2 / 30)
    assert window_times((0.0, 0.04), 0.04, 4).tolist() == [0.0, 0.0, 0.0, 0.0]
