"""The same few views every time, whoever decodes them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.datasets.evaluation import DecodeEvaluationViews, ViewProtocol
from pipeline.datasets.validation import fixed_views
from pipeline.decode.config import DecodeConfig
from pipeline.shards.reader import PreparedSet
from tests.support.small_set import BROKEN, CLASSES, VIEW, small_prepared_set


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return small_prepared_set(tmp_path_factory.mktemp("fixed"))


def test_parts_make_up_the_whole_and_broken_clips_are_left_out(prepared: PreparedSet) -> None:
    whole = list(fixed_views(prepared, VIEW, split="train", count=8))
    parts = [
        view for part in (0, 1) for view in fixed_views(prepared, VIEW, split="train", count=8, part=part, parts=2)
    ]
    assert [view.number for view in whole] == [number for number in range(8) if number != BROKEN]
    for alone, shared in zip(whole, sorted(parts), strict=True):
        assert (alone.number, alone.clip_id, alone.label) == (shared.number, shared.clip_id, shared.label)
        np.testing.assert_array_equal(alone.frames, shared.frames)
        assert alone.frames.shape == (4, 32, 32, 3)
        assert alone.frames.any()


def test_only_the_labelled_ones_with_their_class(prepared: PreparedSet) -> None:
    views = list(fixed_views(prepared, VIEW, split="train", count=99, labelled_only=True))
    numbers = [view.clip_id - 1000 for view in views]
    assert numbers == [number for number in range(10) if number % 4 and number != BROKEN]
    assert [view.label for view in views] == [number % len(CLASSES) for number in numbers]


def test_a_split_without_clips_gives_none(prepared: PreparedSet) -> None:
    assert list(fixed_views(prepared, VIEW, split="nosuch", count=5)) == []


def test_the_view_is_the_test_protocol_s_with_one_clip_and_one_crop(prepared: PreparedSet) -> None:
    selection = prepared.selection("val")
    stage = DecodeEvaluationViews(selection, CLASSES, VIEW, ViewProtocol(clips=1, crops=1), DecodeConfig())
    tables = list(stage({"group": np.flatnonzero(selection.clips_per_group)}))
    views = list(fixed_views(prepared, VIEW, split="val", count=9))
    assert len(views) == len(tables) == 2
    for view, table in zip(views, tables, strict=True):
        assert (view.clip_id, view.label) == (table["clip_id"][0].as_py(), table["label"][0].as_py())
        np.testing.assert_array_equal(view.frames, table["video"].combine_chunks().to_numpy_ndarray()[0])
