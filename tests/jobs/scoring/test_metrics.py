"""From the scores of views to predictions and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.scoring.metrics import (
    PREDICTION_SCHEMA,
    confusion,
    figures,
    predictions,
    worded_for,
)

CLASSES = ("jump", "run", "swim")


def _view(
    clip: int, view: int, label: int | tuple[int, ...], scores: Sequence[float], status: str = "ok"
) -> dict[str, Any]:
    truth = label if isinstance(label, tuple) else () if label < 0 else (label,)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    ranked = [scores[index] for index in order]
    return {"clip_id": clip, "uri": f"v{clip}", "truth": truth, "view": view, "status": status, "classes": order,
            "scores": ranked, "repeats_frames": (clip, view) == (1, 1)}  # fmt: skip


VIEWS = [
    _view(1, 0, 0, [0.6, 0.3, 0.1]),
    _view(1, 1, 0, [0.2, 0.7, 0.1]),  # the mean of both is [.4, .5, .1]: wrong
    _view(2, 0, 1, [0.1, 0.8, 0.1]),
    _view(2, 1, 1, [0.5, 0.4, 0.1]),  # [.3, .6, .1]: right
    _view(3, 0, 1, [0.3, 0.6, 0.1]),
    _view(3, 1, 1, [0.3, 0.6, 0.1]),
    _view(4, 0, 2, [0.0, 0.0, 1.0]),
    _view(4, 1, 2, [0.0, 0.0, 1.0], status="damaged"),
    _view(5, 0, 2, [0.0, 0.0, 1.0]),
    _view(6, 0, -1, [0.0, 0.0, 1.0]),
    _view(6, 1, -1, [0.0, 0.0, 1.0]),
]


@settings(deadline=None)  # a loaded machine is not a failure
@given(st.permutations(VIEWS))
def test_figures_are_those_of_the_mean_over_views_in_any_order(views: list[dict[str, Any]]) -> None:
    rows = sorted(predictions(views, CLASSES, 2), key=lambda row: row["clip_id"])
    assert [row["predicted"] for row in rows] == ["run", "run", "run", None, None, None]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "damaged", "missing_views", "unlabelled"]
    assert rows[0]["labels"] == ["run", "jump", "swim"]
    assert rows[0]["scores"] == [0.5, 0.4, 0.1]
    result = figures(rows, CLASSES)
    assert (result.top1, result.top5) == (2 / 3, 1.0)
    assert result.mean_class_accuracy == 0.5  # jump 0 of 1, run 2 of 2, swim never scored
    assert (result.videos_scored, result.videos_not_scored) == (3, 3)
    assert (result.videos_that_repeat_frames, result.classes_without_videos) == (1, 1)
    # Ranked for run: 3 (yes), 2 (yes), 1 (no); for jump: 1 (yes).
    assert result.mean_average_precision == 1.0
    assert result.calibration_error == pytest.approx((0.5 + 0.4 + 0.4) / 3)  # 0.5 wrong, 0.6 and 0.6 right
    assert result.not_scored_by_reason == {"damaged": 1, "missing_views": 1, "unlabelled": 1}
    assert PREDICTION_SCHEMA.empty_table().from_pylist(rows, schema=PREDICTION_SCHEMA).num_rows == 6


def test_figures_of_images_say_images() -> None:
    report = worded_for("image", asdict(figures(list(predictions(VIEWS, CLASSES, 2)), CLASSES)))
    assert (report["images_scored"], report["images_not_scored"], report["classes_without_images"]) == (3, 3, 1)
    assert not [name for name in report if "video" in name or "frames" in name]
    of_videos = {"top1": 0.5, "videos_scored": 3, "videos_that_repeat_frames": 1}
    assert worded_for("video", of_videos) == of_videos


def test_confusion_counts() -> None:
    rows = list(predictions(VIEWS, CLASSES, 2))
    counts = confusion(rows, CLASSES)
    assert counts.tolist() == [[0, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_nothing_scored_is_told_as_nan() -> None:
    result = figures(list(predictions(VIEWS[-1:], CLASSES, 1)), CLASSES)
    assert result.videos_scored == 0
    assert result.top1 != result.top1
    assert result.mean_class_accuracy == pytest.approx(float("nan"), nan_ok=True)


def test_several_labels_a_video() -> None:
    """By hand: run is on 1 and 2 (ranks 1 and 3: (1 + 2/3) / 2), jump on 1 and 3 (ranks 1 and 2), swim on none."""
    views = [
        _view(1, 0, (0, 1), [0.5, 0.4, 0.1]),
        _view(2, 0, (1,), [0.2, 0.2, 0.6]),
        _view(3, 0, (0,), [0.4, 0.35, 0.25]),
    ]
    rows = sorted(predictions(views, CLASSES, 1), key=lambda row: row["clip_id"])
    assert [row["label"] for row in rows] == ["jump|run", "run", "jump"]
    result = figures(rows, CLASSES)
    assert result.mean_average_precision == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert result.top1 == pytest.approx(2 / 3)
    assert confusion(rows, CLASSES).tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert PREDICTION_SCHEMA.empty_table().from_pylist(rows, schema=PREDICTION_SCHEMA).num_rows == 3
