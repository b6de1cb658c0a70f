"""From the scores of views to predictions of videos and the figures of a set. Pure functions.

The published protocol: softmax per view, then the mean over the views of a video. Legend: C classes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hiera_video.metrics.classification import (
    accuracy_per_class,
    average_precision,
    confusion_matrix,
    expected_calibration_error,
)
from pipeline.media import Media
from pipeline.schema import OK

TOP = 5
UNLABELLED_STATUS = "unlabelled"
MISSING_VIEWS = "missing_views"
REPEATING = "videos_that_repeat_frames"

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("views", pa.int64(), nullable=False),
        pa.field("repeats_frames", pa.bool_(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
    ]
)
"""One clip: the true ``label`` (several with `|` between them), the ``predicted`` one, and the best ``labels`` by
falling ``scores``. ``repeats_frames``: some view has a frame more than once, because the video has too few.
``status`` is ``ok``, or the reason why the clip was not scored."""


@dataclass(frozen=True)
class EvaluationFigures:
    """The quality of a classifier on a set. Of images the report has them by other names (`worded_for`)."""

    top1: float
    """Share of scored videos whose label (one of them, where there are several) has the highest score."""
    top5: float
    """Share of scored videos whose label is among the five highest scores."""
    mean_class_accuracy: float
    """Mean over the classes that occur of their share predicted right."""
    mean_average_precision: float
    """Mean over the classes that occur of the average precision of their scores; the figure for several labels."""
    calibration_error: float
    """How far the highest score and top-1 lie apart, on average over 15 bins (arXiv 1706.04599)."""
    classes_without_videos: int
    """Classes of the classifier that no scored video has; they are in no mean."""
    videos_scored: int
    """Videos behind these shares."""
    videos_that_repeat_frames: int
    """Of these, videos with too few frames for a view: it has some of them more than once."""
    videos_not_scored: int
    """Videos left out."""
    not_scored_by_reason: Mapping[str, int]
    """Why they were left out."""


def predictions(views: Iterable[Mapping[str, Any]], classes: Sequence[str], num_views: int) -> Iterator[dict[str, Any]]:
    """Rows of `PREDICTION_SCHEMA`, each as soon as all views of its clip have arrived, in any order.

    Beside the schema's columns they have ``truth``, unchanged, and ``class_scores``, the mean of each class.

    Args:
        views: ``clip_id, uri, truth`` (class numbers; none: unlabelled), ``view, repeats_frames, status, classes,
            scores`` (all C, best first).
        classes: class names in the order of the logits.
        num_views: views per clip. A clip with fewer, or with a view that failed, is not scored: a mean over fewer
            views would be another protocol.
    """
    waiting: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in views:
        waiting[row["clip_id"]].append(row)
        if len(waiting[row["clip_id"]]) == num_views:
            yield _prediction(waiting.pop(row["clip_id"]), classes, num_views)
    for rows in waiting.values():
        yield _prediction(rows, classes, num_views)


def figures(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> EvaluationFigures:
    """The figures of a set from its predictions; NaN where nothing was scored."""
    scored = [row for row in rows if row["status"] == OK]
    left_out = Counter(row["status"] for row in rows if row["status"] != OK)
    per_class = accuracy_per_class(confusion(rows, classes))
    right = [_is_right(row, classes) for row in scored]
    confidence = torch.tensor([row["class_scores"].max() for row in scored], dtype=torch.float64)
    return EvaluationFigures(
        top1=_share(right),
        top5=_share(any(classes[number] in row["labels"] for number in row["truth"]) for row in scored),
        mean_class_accuracy=_mean_of_known(per_class),
        mean_average_precision=_mean_of_known(_average_precision(scored, len(classes))),
        calibration_error=expected_calibration_error(confidence, torch.tensor(right, dtype=torch.bool)),
        classes_without_videos=len(classes) - len({number for row in scored for number in row["truth"]}),
        videos_scored=len(scored),
        videos_that_repeat_frames=sum(row["repeats_frames"] for row in scored),
        videos_not_scored=left_out.total(),
        not_scored_by_reason=dict(left_out.most_common()),
    )


def worded_for(media: Media, report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures under the names of what was scored: ``images_scored`` for ``videos_scored``, and so on.

    An image has one frame: that it repeats none is no figure.
    """
    if media == "video":
        return dict(report)
    return {name.replace("videos", "images"): value for name, value in report.items() if name != REPEATING}


def confusion(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> torch.Tensor:
    """Counts of scored videos, int64 ``[true class, predicted class]``.

    A video of several labels counts once where one of them is predicted, else once for each.
    """
    number = {name: index for index, name in enumerate(classes)}
    pairs = [
        (true, number[row["predicted"]])
        for row in rows
        if row["status"] == OK
        for true in ([number[row["predicted"]]] if _is_right(row, classes) else row["truth"])
    ]
    trues, predicted = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    return confusion_matrix(predicted, trues, len(classes))


def _is_right(row: Mapping[str, Any], classes: Sequence[str]) -> bool:
    return row["predicted"] in [classes[number] for number in row["truth"]]


def _average_precision(scored: Sequence[Mapping[str, Any]], num_classes: int) -> torch.Tensor:
    scores = torch.from_numpy(
        np.stack([row["class_scores"] for row in scored]) if scored else np.empty((0, num_classes))
    )
    positives = torch.zeros(scores.shape, dtype=torch.bool)
    for number, row in enumerate(scored):
        positives[number, list(row["truth"])] = True
    return average_precision(scores, positives)


def _mean_of_known(values: torch.Tensor) -> float:
    return float(values[~values.isnan()].mean())


def _prediction(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], num_views: int) -> dict[str, Any]:
    status = _status(rows, num_views)
    truth = rows[0]["truth"]
    row = {
        "clip_id": rows[0]["clip_id"],
        "uri": rows[0]["uri"],
        "label": "|".join(classes[number] for number in truth) or None,
        "truth": truth,
        "predicted": None,
        "labels": [],
        "scores": [],
        "views": len(rows),
        "repeats_frames": any(row["repeats_frames"] for row in rows),
        "status": status,
    }
    if status != OK:
        return row
    total = np.zeros(len(classes))
    for view in sorted(rows, key=lambda row: int(row["view"])):  # the sum must not depend on which actor was faster
        total[view["classes"]] += view["scores"]
    mean = total / num_views
    best = np.argsort(-mean, kind="stable")[:TOP]
    names = [classes[index] for index in best]
    return row | {"predicted": names[0], "labels": names, "scores": mean[best].tolist(), "class_scores": mean}


def _status(rows: Sequence[Mapping[str, Any]], num_views: int) -> str:
    failed = sorted(row["status"] for row in rows if row["status"] != OK)
    if failed:
        return str(failed[0])
    if len(rows) != num_views:
        return MISSING_VIEWS
    return UNLABELLED_STATUS if not rows[0]["truth"] else OK


def _share(hits: Iterable[bool]) -> float:
    marks = list(hits)
    return sum(marks) / len(marks) if marks else float("nan")
