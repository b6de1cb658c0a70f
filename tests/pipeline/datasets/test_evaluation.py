"""The stage that decodes the test protocol's views, called without Ray."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from pipeline.datasets.evaluation import DecodeEvaluationViews, ViewProtocol
from pipeline.decode.config import DecodeConfig
from pipeline.sampling import ViewConfig
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
