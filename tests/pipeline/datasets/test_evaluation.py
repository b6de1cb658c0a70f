"""The stage that decodes the test protocol's views, called without Ray."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipeline.datasets.evaluation import DecodeEvaluationViews, ViewProtocol, evaluation_views
from pipeline.decode.config import DecodeConfig
from pipeline.sampling import ViewConfig
from pipeline.schema import UNLABELLED
from pipeline.shards.reader import PreparedSet
from tests.support.small_set import BROKEN, CLASSES, VIEW


def views(prepared: PreparedSet, view: ViewConfig, protocol: ViewProtocol) -> list[pa.Table]:
    """A table for each clip to train on."""
    selection = prepared.selection("train")
    stage = DecodeEvaluationViews(selection, CLASSES, view, protocol, DecodeConfig())
    return list(stage({"group": np.flatnonzero(selection.clips_per_group)}))


def test_the_second_clip_of_two_sees_other_frames(prepared: PreparedSet) -> None:
    """SSv2's 2 × 3 views: the clips take turns over the video, so that no frame is in both."""
    view = dataclasses.replace(VIEW, sampling="segments")
    for table in views(prepared, view, ViewProtocol(clips=2, crops=3)):
        if table["clip_id"][0].as_py() == 1000 + BROKEN:
            continue
        video = table["video"].combine_chunks().to_numpy_ndarray()  # [6, T, H, W, 3]
        assert not table["repeats_frames"].to_numpy().any()
        # The number of a frame is spread over its width, which only the three crops together show.
        frames = [video[3 * clip : 3 * clip + 3, time].tobytes() for clip in (0, 1) for time in range(view.num_frames)]
        assert len(set(frames)) == 2 * view.num_frames


def test_a_video_with_too_few_frames_says_that_it_repeats_some(prepared: PreparedSet) -> None:
    """Twenty frames: a clip of four every second one fits, one of thirty-two does not."""
    for frames, repeats in ((4, False), (32, True)):
        tables = views(prepared, dataclasses.replace(VIEW, num_frames=frames), ViewProtocol(clips=1, crops=1))
        assert {value.as_py() for table in tables for value in table["repeats_frames"]} == {repeats}


# The test protocol's views in Ray Data: every view of every clip, and a reason where there is none.


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluation_views_are_all_there(prepared: PreparedSet) -> None:
    view = dataclasses.replace(VIEW, size=16, frame_stride=4)
    dataset = evaluation_views(prepared, view, ViewProtocol(clips=3, crops=3), split="all", concurrency=1)
    rows = dataset.take_all()
    assert len(rows) == 12 * 9
    for number in range(12):
        views = sorted((row for row in rows if row["clip_id"] == 1000 + number), key=lambda row: row["view"])
        assert [row["view"] for row in views] == list(range(9))
        assert {row["status"] == "ok" for row in views} == {number != BROKEN}
        assert {row["label"] for row in views} == {number % 3 if number % 4 else UNLABELLED}
        assert all(row["video"].shape == (4, 16, 16, 3) for row in views)
        assert any(row["video"].any() for row in views) == (number != BROKEN)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_split_that_is_not_there(prepared: PreparedSet) -> None:
    with pytest.raises(ValueError, match=r"split=test: contains no clip; .* has train \(10 clips\), val \(2 clips\)"):
        evaluation_views(prepared, VIEW, ViewProtocol(), split="test")
