"""The nearest-neighbour probe."""

from __future__ import annotations

import pytest
import torch

from hiera_video.metrics.knn_probe import nearest_neighbour_top1


def blobs(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sixty samples about three centres that lie close together, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(20)
    centres = 100 + torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    return centres[labels] + spread * torch.randn(60, 3, generator=generator), labels


def test_separated_classes_are_recognised() -> None:
    assert nearest_neighbour_top1(*blobs(0, 0.1), *blobs(1, 0.1)) == 1.0


def test_noise_is_at_chance() -> None:
    assert nearest_neighbour_top1(*blobs(0, 50.0), *blobs(1, 50.0)) == pytest.approx(1 / 3, abs=0.2)


def test_near_votes_outweigh_many_far_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0], [-1.0, -0.1]])
    labels = torch.tensor([0, 1, 1, 1])
    assert nearest_neighbour_top1(bank, labels, torch.tensor([[1.0, 0.01]]), torch.tensor([0])) == 1.0


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="queries=0"):
        nearest_neighbour_top1(*blobs(0, 1.0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
