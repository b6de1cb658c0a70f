"""Scores of a classifier. Shapes: B samples, C classes."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts ``[true class, predicted class]``, int64."""
    cells = labels * num_classes + predictions
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy_per_class(confusion: Tensor) -> Tensor:
    """Share of each class predicted right, ``[C]``; NaN for a class without samples."""
    return confusion.diagonal() / confusion.sum(dim=1)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """How far confidence and accuracy lie apart, on average (arXiv 1706.04599): NaN without samples.

    Args:
        confidence: the predicted class's score in [0, 1], ``[B]``.
        correct: whether it was right, ``[B]``.
        bins: equal parts of [0, 1] in which both are averaged.
    """
    number = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, number, confidence.double() - correct.double())
    return float(gaps.abs().sum() / len(confidence)) if len(confidence) else float("nan")


def average_precision(scores: Tensor, positives: Tensor) -> Tensor:
    """Each class's mean precision over its positives, by falling score: ``[C]``, NaN for a class without positives.

    Args:
        scores: ``[B, C]``; equal ones rank in the samples' order.
        positives: bool ``[B, C]``, any number per sample.
    """
    order = scores.argsort(dim=0, descending=True, stable=True)
    hits = positives.gather(0, order).double()
    ranks = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    return (hits.cumsum(0) / ranks * hits).sum(0) / hits.sum(0)


def confused_pairs(confusion: Tensor, count: int) -> list[tuple[int, int, int]]:
    """The ``count`` most frequent mistakes of a matrix ``[true, predicted]``: true class, predicted class, count."""
    mistakes = confusion.clone().fill_diagonal_(0)
    order = mistakes.flatten().argsort(descending=True, stable=True)[:count].tolist()
    pairs = [(*divmod(cell, len(confusion)), int(mistakes.flatten()[cell])) for cell in order]
    return [(true, predicted, number) for true, predicted, number in pairs if number > 0]
