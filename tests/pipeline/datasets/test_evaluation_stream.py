"""The test protocol's views in Ray Data: every view of every clip, and a reason where there is none."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.datasets.evaluation import ViewProtocol, evaluation_views
from pipeline.schema import UNLABELLED
from pipeline.shards.reader import PreparedSet
from tests.support.small_set import BROKEN, VIEW

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


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


def test_a_split_that_is_not_there(prepared: PreparedSet) -> None:
    with pytest.raises(ValueError, match=r"split=test: contains no clip; .* has train \(10 clips\), val \(2 clips\)"):
        evaluation_views(prepared, VIEW, ViewProtocol(), split="test")
