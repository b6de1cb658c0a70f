"""Pictures of confusion matrices of any size and any names."""

from __future__ import annotations

import pytest
import torch

from jobs.reports.confusion import NAMED_CLASSES, confused_pairs_picture, confusion_picture


@pytest.mark.parametrize(
    "counts",
    [
        torch.tensor([[0, 1, 0], [0, 2, 0], [0, 0, 0]]),
        torch.zeros((3, 3), dtype=torch.int64),  # nothing scored, so no mistake at all
        torch.eye(NAMED_CLASSES + 1, dtype=torch.int64),
    ],
)
def test_pictures(counts: torch.Tensor) -> None:
    classes = [f"class $_{number}" for number in range(len(counts))]
    assert confusion_picture(counts, classes).startswith(b"\x89PNG")
    assert confused_pairs_picture(counts, classes).startswith(b"\x89PNG")
