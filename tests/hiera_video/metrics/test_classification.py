"""Figures of a classifier against scikit-learn and hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from hiera_video.metrics.classification import (
    accuracy_per_class,
    average_precision,
    confused_pairs,
    confusion_matrix,
    expected_calibration_error,
)


def test_average_precision_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 6, generator=generator, dtype=torch.float64)
    positives = torch.rand(40, 6, generator=generator) < torch.tensor([0.05, 0.2, 0.5, 0.9, 1.0, 0.0])
    ours = average_precision(scores, positives)
    assert positives.sum(1).max() > 1
    assert ours[5].isnan()
    for number in range(5):
        theirs = average_precision_score(positives[:, number].numpy(), scores[:, number].numpy())
        assert float(ours[number]) == pytest.approx(theirs, rel=1e-12)


def test_calibration_error_by_hand() -> None:
    """Bins (0.2, 0.4] and (0.8, 1.0] of five: means 0.3 and 0.95, right 0.5 and 0.5, two samples each."""
    confidence, correct = torch.tensor([0.25, 0.35, 0.9, 1.0]), torch.tensor([True, False, True, False])
    assert expected_calibration_error(confidence, correct, bins=5) == pytest.approx((0.2 + 0.45) / 2)
    assert expected_calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0.0
    assert np.isnan(expected_calibration_error(torch.empty(0), torch.empty(0)))


def test_calibration_error_falls_for_honest_confidence() -> None:
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(20_000, generator=generator)
    correct = torch.rand(20_000, generator=generator) < confidence
    assert expected_calibration_error(confidence, correct) < 0.02
    assert expected_calibration_error(confidence.sqrt(), correct) > 0.1


def test_confused_pairs_leave_out_what_is_right() -> None:
    confusion = torch.tensor([[50, 2, 0], [7, 40, 0], [0, 0, 30]])
    assert confused_pairs(confusion, 5) == [(1, 0, 7), (0, 1, 2)]
    assert confused_pairs(confusion, 1) == [(1, 0, 7)]
    assert confusion[0, 0] == 50


def test_confusion() -> None:
    confusion = confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert accuracy_per_class(confusion)[:2].tolist() == [0.5, 0.5]
    assert accuracy_per_class(confusion)[2].isnan()
