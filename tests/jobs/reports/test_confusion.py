"""Pictures of confusion matrices of any size and any names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from matplotlib.figure import Figure

from jobs.reports.confusion import COUNTED_CLASSES, NAMED_CLASSES, confused_pairs_picture, confusion_picture


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


@pytest.mark.parametrize(("classes", "numbers"), [(3, {"7", "0"}), (COUNTED_CLASSES + 1, set())])
def test_cells_of_few_classes_have_their_counts(
    classes: int, numbers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = list[Figure]()

    def drawn(width: float, height: float, draw: Callable[[Figure], None]) -> bytes:
        figures.append(Figure())
        draw(figures[0])
        return b""

    monkeypatch.setattr("jobs.reports.confusion.png", drawn)
    confusion_picture(7 * torch.eye(classes, dtype=torch.int64), [f"class {number}" for number in range(classes)])
    assert {text.get_text() for text in figures[0].axes[0].texts} == numbers
