"""The highest values over several files are those of all rows sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.core.errors import UserError
from jobs.finding.nearest import labelled, nearest
from jobs.finding.windows import open_snapshot, refuse_without_embeddings
from tests.support.tag_output import commit, commit_embedded


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 3, 8)).astype(np.float32)


@pytest.fixture
def output(vectors: np.ndarray, tmp_path: Path) -> str:
    """Twelve videos of three windows in four files."""
    for start in range(0, 12, 3):
        some = {f"/v{number}.mp4": vectors[number] for number in range(start, start + 3)}
        commit_embedded(str(tmp_path), some, lambda uri, index: {f"at {index}": int(uri[2:-4]) / 16, "all": 0.5})
    commit(str(tmp_path), ("/broken.mp4", "1", "corrupt"))
    return str(tmp_path)


def test_exact_search_is_a_sort_of_all_cosines(output: str, vectors: np.ndarray) -> None:
    query = np.random.default_rng(1).normal(size=8).astype(np.float32)
    found = nearest(open_snapshot(output, None), 3 * query, 5)
    cosines = (vectors @ query) / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(query)
    best = [(f"/v{number // 3}.mp4", number % 3) for number in np.argsort(-cosines, axis=None)[:5]]
    assert list(zip(found["uri"].to_pylist(), found["window_index"].to_pylist(), strict=True)) == best
    assert found["similarity"].to_pylist() == pytest.approx(np.sort(cosines, axis=None)[::-1][:5], abs=1e-6)


def test_windows_with_a_label(output: str) -> None:
    found = labelled(open_snapshot(output, None), "at 1", 0.5, 9)
    assert found["uri"].to_pylist() == ["/v11.mp4", "/v10.mp4", "/v9.mp4", "/v8.mp4"]
    assert found["score"].to_pylist() == [11 / 16, 10 / 16, 9 / 16, 8 / 16]
    assert set(found["window_index"].to_pylist()) == {1}
    assert len(labelled(open_snapshot(output, None), "all", 0.6, 9)) == 0


def test_a_label_that_no_window_has(output: str) -> None:
    with pytest.raises(UserError, match=r"label=at 7: no window of output=.* has it; some that occur: \['at 2'"):
        labelled(open_snapshot(output, None), "at 7", 0.0, 9)


def test_an_older_snapshot(output: str) -> None:
    assert len(open_snapshot(output, "1")) == 9
    assert len(labelled(open_snapshot(output, "1"), "all", 0.0, 50)) == 9


def test_tags_without_embeddings(tmp_path: Path) -> None:
    commit(str(tmp_path), ("/a.mp4", "1", "ok"))
    with pytest.raises(UserError, match="holds no embeddings; tag into a new output with embeddings=true"):
        refuse_without_embeddings(open_snapshot(str(tmp_path), None))
