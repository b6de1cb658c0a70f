"""From the scores of views to predictions of videos and the figures of a set. Pure but for the picture.

The published protocol: softmax per view, then the mean over the views of a video. Legend: C classes.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hiera_video import accuracy_per_class, confusion_matrix
from pipeline import OK, UNLABELLED

TOP = 5
UNLABELLED_STATUS = "unlabelled"
MISSING_VIEWS = "missing_views"
NAMED_CLASSES = 40  # more names than this cannot be read beside a matrix

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("views", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
    ]
)
"""One clip: the true ``label``, the ``predicted`` one, and the best ``labels`` by falling ``scores``. ``status`` is
``ok``, or why the clip was not scored."""


@dataclass(frozen=True)
class EvaluationFigures:
    """How well a classifier does on a set."""

    top1: float
    """Share of scored videos whose label has the highest score."""
    top5: float
    """Share of scored videos whose label is among the five highest scores."""
    mean_class_accuracy: float
    """Mean over the classes that occur of their share predicted right."""
    videos_scored: int
    """Videos behind these shares."""
    videos_not_scored: int
    """Videos left out."""
    not_scored_by_reason: Mapping[str, int]
    """Why they were left out."""


def predictions(views: Iterable[Mapping[str, Any]], classes: Sequence[str], num_views: int) -> Iterator[dict[str, Any]]:
    """Rows of `PREDICTION_SCHEMA`, each as soon as all views of its clip are there, in whatever order they come.

    Args:
        views: ``clip_id, uri, label`` (class number), ``view, status, classes, scores`` (all C, best first).
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
    return EvaluationFigures(
        top1=_share(row["label"] == row["predicted"] for row in scored),
        top5=_share(row["label"] in row["labels"] for row in scored),
        mean_class_accuracy=float(per_class[~per_class.isnan()].mean()),
        videos_scored=len(scored),
        videos_not_scored=left_out.total(),
        not_scored_by_reason=dict(left_out.most_common()),
    )


def confusion(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> torch.Tensor:
    """Counts of scored videos, int64 ``[true class, predicted class]``."""
    number = {name: index for index, name in enumerate(classes)}
    pairs = [(number[row["label"]], number[row["predicted"]]) for row in rows if row["status"] == OK]
    true, predicted = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    return confusion_matrix(predicted, true, len(classes))


def confusion_picture(counts: torch.Tensor, classes: Sequence[str]) -> bytes:
    """A PNG of the confusion matrix, each row as shares of its true class."""
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    side = min(4 + 0.35 * len(classes), 14)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    axes.set(xlabel="predicted", ylabel="true", title="share of each true class")
    if len(classes) <= NAMED_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right")
        axes.set_yticks(range(len(classes)), classes)
    figure.colorbar(image, ax=axes, shrink=0.7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _prediction(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], num_views: int) -> dict[str, Any]:
    status = _status(rows, num_views)
    label = rows[0]["label"]
    row = {
        "clip_id": rows[0]["clip_id"],
        "uri": rows[0]["uri"],
        "label": None if label == UNLABELLED else classes[label],
        "predicted": None,
        "labels": [],
        "scores": [],
        "views": len(rows),
        "status": status,
    }
    if status != OK:
        return row
    mean = _view_mean(rows, len(classes))
    best = np.argsort(-mean, kind="stable")[:TOP]
    names = [classes[index] for index in best]
    return row | {"predicted": names[0], "labels": names, "scores": mean[best].tolist()}


def _status(rows: Sequence[Mapping[str, Any]], num_views: int) -> str:
    failed = sorted(row["status"] for row in rows if row["status"] != OK)
    if failed:
        return str(failed[0])
    if len(rows) != num_views:
        return MISSING_VIEWS
    return UNLABELLED_STATUS if rows[0]["label"] == UNLABELLED else OK


def _view_mean(rows: Sequence[Mapping[str, Any]], num_classes: int) -> npt.NDArray[np.float64]:
    """Mean scores ``[C]``, summed by view number: the sum must not depend on which actor was faster."""
    total = np.zeros(num_classes)
    for row in sorted(rows, key=lambda row: int(row["view"])):
        total[row["classes"]] += row["scores"]
    return total / len(rows)


def _share(hits: Iterable[bool]) -> float:
    marks = list(hits)
    return sum(marks) / len(marks) if marks else float("nan")
