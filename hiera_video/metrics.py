"""Scores of a classifier. Shapes: B samples, V views, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_correct(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, int]:
    """How many of ``[B, C]`` have their label ``[B]`` among the k highest; k is cut to the number of classes."""
    highest = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    hits = highest == labels.to(highest.device)[:, None]
    return {k: int(hits[:, :k].any(dim=1).sum()) for k in ks}


def view_average(logits: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Softmax per view, then the mean over the views of each video (SlowFast's and the paper's protocol).

    Args:
        logits: ``[V, C]``.
        groups: int64 ``[V]``, the video of each view, in [0, num_groups).

    Returns:
        float32 ``[num_groups, C]``; a video without views is NaN.
    """
    probabilities = logits.float().softmax(dim=1)
    totals = probabilities.new_zeros(num_groups, logits.shape[1]).index_add(0, groups, probabilities)
    counts = probabilities.new_zeros(num_groups).index_add(0, groups, probabilities.new_ones(len(groups)))
    return totals / counts[:, None]


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts ``[true class, predicted class]``, int64."""
    cells = labels * num_classes + predictions
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy_per_class(confusion: Tensor) -> Tensor:
    """Share of each class predicted right, ``[C]``; NaN for a class without samples."""
    return confusion.diagonal() / confusion.sum(dim=1)
