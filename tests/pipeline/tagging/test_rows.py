"""Scores become rows: one a window, and of whole videos labels, spans, status and first error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from pipeline.tagging.rows import ScoredWindow, merged_spans, tag_rows, video_row
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from tests.support.tag_output import COMMON, GRID, listed

Scores = Mapping[str, float]


def windows(scores: Sequence[Scores | str]) -> list[ScoredWindow]:
    """A window for each: its labels, or the error that it failed with."""
    return [
        ScoredWindow(index, status=found, message=f"{found} in {index}")
        if isinstance(found, str)
        else ScoredWindow(index, list(found), list(found.values()), embedding=[1.0, 2.0])
        for index, found in enumerate(scores)
    ]


def row_of(*scores: Scores | str) -> dict[str, Any]:
    """The row of a video with one window a second."""
    video = listed("a.mp4", "1", float(len(scores)))
    row = video_row(video, tag_rows(video, windows(scores), GRID, COMMON), COMMON)
    (stored,) = pa.Table.from_pylist([row], schema=VIDEO_SCHEMA).to_pylist()
    assert stored.keys() == row.keys()
    return stored


def test_a_row_for_every_window() -> None:
    video = listed("a.mp4", "1", 2.5)
    rows = tag_rows(video, windows([{"x": 0.5}, "corrupt", {"x": 0.25}]), GRID, COMMON)
    assert [(row["window_index"], row["start_seconds"], row["end_seconds"]) for row in rows] == [
        (0, 0.0, 1.0),
        (1, 1.0, 2.0),
        (2, 1.5, 2.5),  # moved back to end with the video
    ]
    assert [row["status"] for row in rows] == ["ok", "corrupt", "ok"]
    assert len({row["unit_id"] for row in rows}) == 1
    stored = pa.Table.from_pylist(rows, schema=tag_schema(embeddings=True)).to_pylist()
    assert [row["embedding"] for row in stored] == [[1.0, 2.0], None, [1.0, 2.0]]
    assert {row["run_key"] for row in stored} == {"key"}


def test_a_video_that_cannot_be_opened_is_one_row_without_window() -> None:
    video = {name: value for name, value in listed("bad.mp4", "1").items() if name != "duration_seconds"}
    rows = tag_rows(video, [ScoredWindow(None, status="damaged", message="no frames")], GRID, COMMON)
    assert [(row["window_index"], row["start_seconds"], row["status"]) for row in rows] == [(None, None, "damaged")]
    row = video_row(video, rows, COMMON)
    assert (row["status"], row["error_class"], row["windows"], row["labels"]) == ("failed", "damaged", 0, [])


def test_labels_by_the_mean_over_scored_windows() -> None:
    """A window that does not name a label counts 0, one that failed does not count."""
    row = row_of({"x": 0.8, "y": 0.1}, {"y": 0.5, "z": 0.25}, "corrupt")
    assert row["labels"] == ["x", "y"]  # as many as a window names
    assert row["scores"] == pytest.approx([0.4, 0.3])
    assert (row["windows"], row["windows_failed"], row["status"]) == (3, 1, "partial")
    assert (row["error_class"], row["message"]) == ("corrupt", "corrupt in 2")


def test_a_video_of_failed_windows_has_failed() -> None:
    row = row_of("timeout", "crashed")
    assert (row["status"], row["error_class"], row["windows"], row["windows_failed"]) == ("failed", "timeout", 2, 2)


def test_equal_scores_are_in_the_order_of_their_names() -> None:
    assert row_of({"b": 0.5, "a": 0.5})["labels"] == ["a", "b"]


def test_spans_are_consecutive_windows_with_their_highest_score() -> None:
    def window(index: int, **scores: float) -> dict[str, Any]:
        times = {"window_index": index, "start_seconds": float(index), "end_seconds": index + 1.0}
        return times | {"labels": list(scores), "scores": list(scores.values())}

    spans = merged_spans([window(0, x=0.2), window(1, x=0.6, y=0.9), window(2, y=0.3), window(4, x=0.1, y=0.2)])
    assert [tuple(span.values()) for span in spans] == [
        ("x", 0.0, 2.0, 0.6),
        ("y", 1.0, 3.0, 0.9),
        ("y", 4.0, 5.0, 0.2),  # window 3 is missing
        ("x", 4.0, 5.0, 0.1),
    ]


def test_a_video_that_was_cut_off_is_partial() -> None:
    """All windows that it holds are scored; what is missing is described."""
    message = "the file ends after 2.00 of 9.00 s"
    video = listed("a.mp4", "1", 2.0) | {"cut_off": message}
    good, bad = ([{"x": 0.5}, {"x": 0.5}], [{"x": 0.5}, "crashed"])
    row = video_row(video, tag_rows(video, windows(good), GRID, COMMON), COMMON)
    assert (row["status"], row["error_class"], row["message"]) == ("partial", "damaged", message)
    assert (row["windows"], row["windows_failed"], row["labels"]) == (2, 0, ["x"])
    row = video_row(video, tag_rows(video, windows(bad), GRID, COMMON), COMMON)
    assert (row["status"], row["error_class"], row["message"]) == ("partial", "crashed", "crashed in 1")
