"""Uncertain windows, one of each video, and among them those that lie apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.finding.windows import open_snapshot
from jobs.suggest.choice import best_of_each, choose, k_center, read_pool, uncertainty
from tests.support.tag_output import commit, commit_embedded


def _scores(*rows: list[float]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows, pa.list_(pa.float32()))])


def test_uncertainty_is_the_margin_of_the_first_two() -> None:
    found = uncertainty(_scores([0.75, 0.25], [0.5, 0.5, 0.0], [1.0], []), False)
    assert found.tolist() == [0.5, 1.0, 0.0, 1.0]


def test_uncertainty_of_independent_scores_is_the_nearest_to_a_half() -> None:
    found = uncertainty(_scores([1.0, 0.75], [0.5], [1.0, 0.0], []), True)
    assert found.tolist() == [0.5, 1.0, 0.0, 0.0]


def test_one_row_of_each_video() -> None:
    uris = pa.chunked_array([["b", "a"], ["b", "c", "a"]])
    assert sorted(best_of_each(uris, np.array([1, 5, 2, 3, 4], np.float32)).tolist()) == [1, 2, 3]


def test_k_center_takes_the_farthest_each_time() -> None:
    angles = np.radians([0, 5, 90, 95, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    nothing = np.empty((0, 2), np.float32)
    assert k_center(points, 3, nothing) == [0, 4, 2]
    assert k_center(points, 2, points[[0]]) == [4, 2]
    assert sorted(k_center(points, 99, nothing)) == [0, 1, 2, 3, 4]


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Three sure videos, and six uncertain ones in three places; window 1 of each is the uncertain one."""
    places = np.eye(4)
    videos = {f"/u{number}.mp4": places[[3, number % 3]] for number in range(6)}
    sure = {f"/s{number}.mp4": places[[3, 3]] for number in range(3)}

    def labels(uri: str, index: int) -> dict[str, float]:
        top = 0.9 if uri.startswith("/s") or index == 0 else 0.5 + int(uri[2]) / 100
        return {f"label {uri[1]}": top, "other": 1 - top}

    commit_embedded(str(tmp_path), videos, labels)
    commit_embedded(str(tmp_path), sure, labels)
    commit(str(tmp_path), ("/broken.mp4", "1", "corrupt"))
    return str(tmp_path)


def test_uncertain_clips_of_different_places(output: str) -> None:
    pool = read_pool(open_snapshot(output, None), 6, [])
    assert pool.clips["uri"].to_pylist() == [f"/u{number}.mp4" for number in range(6)]
    assert pool.labels == ["label s", "label u", "other"]
    # The two scores of video n are 0.5 + n / 100 and 0.5 - n / 100.
    assert pool.clips["uncertainty"].to_pylist() == pytest.approx([1.0, 0.98, 0.96, 0.94, 0.92, 0.9], abs=1e-6)
    clips = choose(pool, 3)
    assert clips["uri"][0].as_py() == "/u0.mp4"
    assert {int(uri[2]) % 3 for uri in clips["uri"].to_pylist()} == {0, 1, 2}
    assert clips["window_index"].to_pylist() == [1, 1, 1]
    # After u0 two places are equally far from it, with two videos each: rounding decides which is next.
    expected = [1 - int(uri[2]) / 50 for uri in clips["uri"].to_pylist()]
    assert clips["uncertainty"].to_pylist() == pytest.approx(expected, abs=1e-6)


def test_what_is_labelled_is_not_suggested_and_what_is_like_it_comes_last(output: str) -> None:
    pool = read_pool(open_snapshot(output, None), 6, ["/u0.mp4", "/elsewhere.mp4"])
    assert "/u0.mp4" not in pool.clips["uri"].to_pylist()
    assert len(pool.centres) == 1
    clips = choose(pool._replace(clips=pool.clips.slice(0, 5)), 3)
    assert "/u3.mp4" not in clips["uri"].to_pylist()[:2]  # the same place as /u0
