"""Copies and parts share a group with the longest video; unrelated videos do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.duplicates import groups as module
from jobs.duplicates.groups import (
    GROUP_SCHEMA,
    Collection,
    Pair,
    candidates,
    grouped,
    read_collection,
    similar_pairs,
    to_exclude,
    whitened,
)
from jobs.finding.windows import open_snapshot
from tests.support.tag_output import commit, commit_embedded


def _collection(path: Path, noise: float = 0.1) -> Collection:
    """60 unrelated videos of 5 windows; /v0 also as a noisy copy and as its last 3 windows; a video without rows."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5, 24)) + 10
    videos = {f"/v{number}.mp4": vectors[number] for number in range(60)}
    commit_embedded(str(path), {**videos, "/copy.mp4": vectors[0] + noise * rng.normal(size=(5, 24))})
    commit_embedded(str(path), {"/part.mp4": vectors[0, 2:]})
    commit(str(path), ("/broken.mp4", "1", "corrupt"))
    return read_collection(open_snapshot(str(path), None))


def test_a_copy_and_a_part_are_found(tmp_path: Path) -> None:
    videos = _collection(tmp_path)
    assert len(videos.uris) == 62
    groups = grouped(videos, similar_pairs(videos, 0.8))
    assert groups.schema == GROUP_SCHEMA
    assert sorted(groups["uri"].to_pylist()) == ["/copy.mp4", "/part.mp4", "/v0.mp4"]
    assert groups["representative"].to_pylist() == [True, False, False]
    assert groups["windows"].to_pylist()[0] == 5
    assert set(to_exclude(groups)) == {"/part.mp4", "/v0.mp4"}  # of two as long, the first by name stays


def test_nothing_is_alike(tmp_path: Path) -> None:
    videos = _collection(tmp_path, noise=3.0)
    assert set(to_exclude(grouped(videos, similar_pairs(videos, 0.8)))) == {"/part.mp4"}
    nothing = grouped(videos, similar_pairs(videos, 1.1))
    assert (len(nothing), nothing.schema) == (0, GROUP_SCHEMA)


def test_no_video_goes_with_one_that_it_is_not_like() -> None:
    """A chain a - b - c: c is like b and not like a, which stays for b; so c stays, too."""
    starts = np.array([0, 3, 5, 6])
    videos = Collection(["a", "b", "c"], starts, np.empty((6, 1), np.float16), np.empty((3, 1), np.float32))
    assert to_exclude(grouped(videos, [Pair(0, 1, 0.9), Pair(1, 2, 0.95)])) == ["b"]


@pytest.mark.parametrize("block", [7, 2048])
def test_candidates_are_all_pairs_above_the_bound(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    means = np.random.default_rng(0).normal(size=(15, 3)).astype(np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    first, second = np.nonzero(np.triu(means @ means.T, 1) >= 0.5)
    assert list(candidates(means, 0.5)) == list(zip(first.tolist(), second.tolist(), strict=True))


def test_each_video_has_its_own_windows(tmp_path: Path) -> None:
    """The names have several lengths, and the videos several numbers of windows: `group_by` promises no order."""
    videos = {
        f"/folder/{'x' * (number % 7)}{number}.mp4": np.eye(64)[[number] * (1 + number % 3)] for number in range(64)
    }
    commit_embedded(str(tmp_path), videos)
    found = read_collection(open_snapshot(str(tmp_path), None))
    assert found.uris == sorted(videos)
    assert np.diff(found.starts).tolist() == [len(videos[uri]) for uri in found.uris]
    numbers = [int(np.argmax(videos[uri][0])) for uri in found.uris]
    expected = whitened(found.uris, np.arange(65), np.eye(64, dtype=np.float16)[numbers])
    np.testing.assert_allclose((found.means * expected.means).sum(axis=1), 1, atol=0.01)


def test_no_videos_and_one() -> None:
    none = whitened([], np.zeros(1, np.int64), np.empty((0, 4), np.float16))
    assert len(grouped(none, similar_pairs(none, 0.8))) == 0
    one = whitened(["a"], np.array([0, 2]), np.eye(4, dtype=np.float16)[:2])
    assert len(grouped(one, similar_pairs(one, 0.8))) == 0


def test_rows_out_of_order_are_put_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After files were joined the windows of a video may stand anywhere in their file."""
    before = _collection(tmp_path)
    read = module.scored_parts

    def shuffled(*arguments: object) -> list[pa.Table]:
        rng = np.random.default_rng(0)
        return [part.take(pa.array(rng.permutation(len(part)))) for part in read(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(module, "scored_parts", shuffled)
    after = read_collection(open_snapshot(str(tmp_path), None))
    assert after.uris == before.uris
    np.testing.assert_allclose(after.windows, before.windows, atol=2e-3)
