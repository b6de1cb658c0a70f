"""`search`: the page and the table of what was found, and its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.core.errors import UserError
from jobs.finding import likeness
from jobs.finding.nearest import nearest
from jobs.search import SearchConfig, run
from jobs.synthetic.motion_videos import render_motion_videos
from tests.support.tag_output import commit, commit_embedded


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four videos of two windows; the first two are alike."""
    folder = tmp_path_factory.mktemp("found")
    videos = render_motion_videos(folder / "source", 4, seed=1, size=64, num_frames=60)
    a, b, c, d = np.random.default_rng(0).normal(size=(4, 2, 8))
    vectors = dict(zip([str(video.path) for video in videos], (a, a + 0.01 * b, c, d), strict=True))
    commit_embedded(str(folder / "tag"), vectors, lambda uri, index: {"jump": 0.25 + index / 2, "run<": 0.125})
    return str(folder / "tag")


def _uris(output: str) -> list[str]:
    return sorted(map(str, (Path(output).parent / "source").rglob("*.*")))


def test_windows_like_a_moment(output: str, tmp_path: Path) -> None:
    save, page = str(tmp_path / "found.parquet"), str(tmp_path / "page.html")
    first = pq.read_table(next((Path(output) / "tags").glob("*.parquet")))["uri"][0].as_py()
    report = run(SearchConfig(output=output, like=f"{Path(first).name}@0.2s", count=3, save=save, page=page))
    found = pq.read_table(save)
    assert (report["windows"], report["found"], report["page"]) == (8, 3, page)
    assert found["similarity"][0].as_py() > 0.99
    assert (first, 0) not in zip(found["uri"].to_pylist(), found["window_index"].to_pylist(), strict=True)
    text = Path(page).read_text()
    assert text.count("<figure>") == text.count("data:image/jpeg") == 3
    assert "similarity" in text
    assert "run&lt;" in text
    assert "as_of=1" in text


def test_windows_with_a_label(output: str) -> None:
    report = run(SearchConfig(output=output, label="jump", min_score=0.6))
    assert (report["found"], report["highest"], report["lowest"]) == (4, 0.75, 0.75)
    assert "score 0.750" in (Path(output) / "search.html").read_text()
    assert run(SearchConfig(output=output, label="jump", min_score=0.9))["found"] == 0


def test_many_windows_are_searched_by_index(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def by_index(snapshot: Any, query: Any, count: int, folder: Path) -> pa.Table:
        asked.append((count, folder))
        return nearest(snapshot, query, count)

    monkeypatch.setattr(likeness, "nearest_by_index", by_index)
    like = f"{Path(_uris(output)[0]).name}@0.2s"
    keys: dict[str, Any] = {"output": output, "like": like, "page": str(tmp_path / "page.html")}
    assert run(SearchConfig(**keys, count=2, exact_windows=8))["found"] == 2
    assert run(SearchConfig(**keys, count=2, exact_windows=7))["found"] == 2
    assert asked == [(3, Path(output) / "index")]
    with pytest.raises(UserError, match="index=s3://b/i: must be a local folder"):
        run(SearchConfig(**keys, exact_windows=7, index="s3://b/i"))


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="like=None: exactly one of like and label must be set"):
        SearchConfig(output="o")
    with pytest.raises(ValueError, match="exactly one of like and label"):
        SearchConfig(output="o", like="a@1s", label="x")
    with pytest.raises(ValueError, match=r"like=a: must be VIDEO@SECONDS"):
        SearchConfig(output="o", like="a")
    with pytest.raises(ValueError, match="count=0: must be at least 1"):
        SearchConfig(output="o", label="x", count=0)
    with pytest.raises(ValueError, match="min_score=2: must lie between 0 and 1"):
        SearchConfig(output="o", label="x", min_score=2)
    commit(str(tmp_path), ("/a.mp4", "1", "ok"))
    with pytest.raises(UserError, match="holds no embeddings"):
        run(SearchConfig(output=str(tmp_path), like="a.mp4@0s"))
