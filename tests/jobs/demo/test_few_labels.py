"""Few labels: every held-out video keeps its own, in training a few of each class."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from jobs.demo.few_labels import keep_few_labels
from jobs.prepare import command as prepare
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.shards.reader import open_prepared


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


@pytest.mark.parametrize("per_class", [1, 3, 100])
def test_a_list_without_splits(per_class: int, tmp_path: Path) -> None:
    listing = tmp_path / "annotations.csv"
    listing.write_text("path,label\n" + "".join(f"{label}/{n}.mp4,{label}\n" for n in range(10) for label in "ab"))
    keep_few_labels(listing, per_class)
    found = Counter((row["label"], row["split"]) for row in rows(listing))
    kept = min(8, per_class)
    expected = {
        ("a", "val"): 2,
        ("b", "val"): 2,
        ("a", "train"): kept,
        ("b", "train"): kept,
        ("", "train"): 16 - 2 * kept,
    }
    assert found == Counter(expected)
    assert [row["path"] for row in rows(listing)] == [f"{label}/{n}.mp4" for n in range(10) for label in "ab"]


def test_a_list_with_splits_keeps_them_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    listing = tmp_path / "annotations.csv"
    lines = [f"{n}.jpg,a,{'val' if n < 2 else 'train'}\n" for n in range(5)]
    listing.write_text("".join(["path,label,split\n", *lines]))
    keep_few_labels(listing, 1)
    assert [(row["label"], row["split"]) for row in rows(listing)] == [
        ("a", "val"), ("a", "val"), ("a", "train"), ("", "train"), ("", "train"),
    ]  # fmt: skip
    before = listing.stat().st_mtime_ns
    keep_few_labels(listing, 1)
    assert listing.stat().st_mtime_ns == before


def test_prepare_takes_the_rest_as_unlabelled(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    render_motion_videos(folder, 24, seed=0, size=64, num_frames=8, annotations=True)
    keep_few_labels(folder / "annotations.csv", 1)
    config = prepare.PrepareConfig(
        source=str(folder), output=str(tmp_path / "set"), workers=0, tracking=TrackingConfig("none")
    )
    assert not prepare.run(config)["rejected"]
    prepared = open_prepared(str(tmp_path / "set"))
    assert [prepared.num_clips("train"), prepared.num_clips("train", labelled_only=True)] == [16, 8]
    assert [prepared.num_clips("val"), prepared.num_clips("val", labelled_only=True)] == [8, 8]
    assert len(prepared.classes) == 8
