"""`duplicates`: its list is what `prepare` excludes, its page shows the groups."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.core.errors import UserError
from jobs.duplicates.command import DuplicatesConfig, run
from jobs.prepare.command import PrepareConfig
from jobs.prepare.command import run as prepare
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import render_motion_videos
from tests.support.tag_output import commit, commit_embedded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source/`` of three videos and a copy; the table ``tag/`` of these and forty that no longer exist."""
    folder = tmp_path_factory.mktemp("found")
    videos = [video.path for video in render_motion_videos(folder / "source", 3, seed=1, size=64, num_frames=40)]
    copy = shutil.copy(videos[0], folder / "source" / f"copy & paste{videos[0].suffix}")
    vectors = np.random.default_rng(0).normal(size=(43, 3, 16))
    named = {str(path): vectors[number] for number, path in enumerate(videos)}
    named |= {f"/gone/{number}.mp4": vectors[number] for number in range(3, 43)}
    commit_embedded(str(folder / "tag"), {**named, str(copy): vectors[0, :2]})
    return folder


def test_the_list_is_what_prepare_excludes(folder: Path) -> None:
    report = run(DuplicatesConfig(output=str(folder / "tag")))
    assert (report["videos"], report["groups"], report["duplicates"]) == (44, 1, 1)
    listed = Path(report["duplicates.txt"]).read_text()
    assert "copy & paste" in listed
    assert listed.count("\n") == 1
    groups = pq.read_table(report["groups.parquet"])
    assert groups["representative"].to_pylist() == [True, False]
    prepared = prepare(
        PrepareConfig(
            source=str(folder / "source"), output=str(folder / "set"), workers=0, exclude=report["duplicates.txt"],
            tracking=TrackingConfig(uri="none"),
        )
    )  # fmt: skip
    assert prepared["clips"] == 3
    assert prepared["exclude_unmatched"] == []


def test_the_page_shows_each_group(folder: Path, tmp_path: Path) -> None:
    report = run(DuplicatesConfig(output=str(folder / "tag"), save=str(tmp_path)))
    text = (tmp_path / "duplicates.html").read_text()
    assert Path(report["duplicates.html"]) == tmp_path / "duplicates.html"
    assert text.count("<figure>") == text.count("data:image/jpeg") == 2
    assert "copy &amp; paste" in text
    assert "1 near-duplicates among 44 videos" in text


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="min_similarity=0: must be above 0 and at most 1"):
        DuplicatesConfig(output="o", min_similarity=0)
    with pytest.raises(ValueError, match="groups_shown=-1: must not be negative"):
        DuplicatesConfig(output="o", groups_shown=-1)
    commit(str(tmp_path / "plain"), ("/a.mp4", "1", "ok"))
    with pytest.raises(UserError, match="holds no embeddings"):
        run(DuplicatesConfig(output=str(tmp_path / "plain")))
    few = {"/a\nb.mp4": np.ones((2, 4)), "/a.mp4": np.ones((3, 4)), "/c.mp4": np.eye(4)[:2]}
    commit_embedded(str(tmp_path / "few"), few)
    with pytest.raises(UserError, match=r"output=.*few: holds the name '/a\\nb.mp4'.*; rename the file"):
        run(DuplicatesConfig(output=str(tmp_path / "few"), min_similarity=0.5))
    assert "only 3 videos" in capsys.readouterr().err
