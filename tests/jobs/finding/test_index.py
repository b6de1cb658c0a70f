"""The index finds what exact search finds, is kept, and is made anew for another snapshot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.core.errors import UserError
from jobs.finding import index as module
from jobs.finding.index import nearest_by_index
from jobs.finding.nearest import nearest
from jobs.finding.windows import open_snapshot
from tests.support.tag_output import commit_embedded

VECTORS = np.random.default_rng(0).normal(size=(40, 5, 16))


@pytest.fixture
def output(tmp_path: Path) -> str:
    for start in range(0, 40, 20):
        some = {f"/v{number}.mp4": VECTORS[number] for number in range(start, start + 20)}
        commit_embedded(str(tmp_path / "tag"), some)
    return str(tmp_path / "tag")


def test_it_finds_what_exact_search_finds(output: str, tmp_path: Path) -> None:
    snapshot = open_snapshot(output, None)
    for query in np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32):
        exact, found = nearest(snapshot, query, 10), nearest_by_index(snapshot, query, 10, tmp_path / "index")
        names = [set(zip(table["uri"].to_pylist(), table["window_index"].to_pylist(), strict=True))
                 for table in (exact, found)]  # fmt: skip
        assert len(names[0] & names[1]) >= 9
        assert found["similarity"].to_pylist() == sorted(found["similarity"].to_pylist(), reverse=True)
        assert found.column_names == exact.column_names
        assert found["similarity"][0].as_py() == pytest.approx(exact["similarity"][0].as_py(), abs=2e-3)


def test_it_is_made_once_for_a_snapshot(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = np.ones(16, np.float32)
    nearest_by_index(open_snapshot(output, None), query, 3, tmp_path / "index")
    (first,) = (tmp_path / "index").iterdir()
    assert "indexing 200 windows" in capsys.readouterr().err
    nearest_by_index(open_snapshot(output, None), query, 3, tmp_path / "index")
    assert "indexing" not in capsys.readouterr().err
    commit_embedded(output, {"/more.mp4": [query.tolist()]})
    found = nearest_by_index(open_snapshot(output, None), query, 3, tmp_path / "index")
    assert found["uri"][0].as_py() == "/more.mp4"
    (second,) = (tmp_path / "index").iterdir()
    assert second != first


def test_outputs_may_share_a_folder(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = np.ones(16, np.float32)
    commit_embedded(str(tmp_path / "other"), {"/other.mp4": [query.tolist()]})
    for _ in range(2):
        for each in (output, str(tmp_path / "other")):
            nearest_by_index(open_snapshot(each, None), query, 3, tmp_path / "index")
    assert capsys.readouterr().err.count("indexing") == 2
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_an_index_that_another_search_deletes_meanwhile_is_made_anew(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, query, folder = open_snapshot(output, None), np.ones(16, np.float32), tmp_path / "index"
    before = nearest_by_index(snapshot, query, 3, folder)
    look_at = module.Index.metadata

    def look_and_lose(path: str) -> object:
        found = look_at(path)
        Path(path).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(module.Index, "metadata", staticmethod(look_and_lose))
    assert nearest_by_index(snapshot, query, 3, folder).equals(before)
    assert len(list(folder.iterdir())) == 1


def test_without_the_library(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Index", None)
    with pytest.raises(UserError, match=r"holds 200 windows, which need an index; `pip install"):
        nearest_by_index(open_snapshot(output, None), np.ones(16, np.float32), 3, tmp_path)
