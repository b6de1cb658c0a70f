"""What is kept for the backward pass, against autograd on real tensors."""

from __future__ import annotations

import pytest
import torch

from hiera_video import build_model, model_config
from hiera_video.memory import activation_bytes


@pytest.mark.parametrize("name", ["mae_hiera_test_8x64", "hiera_test_8x64", "hiera_tiny_224"])
def test_as_much_as_autograd_keeps(name: str) -> None:
    config = model_config(name)
    model = build_model(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(1, 3, *config.input_size))
    real = sum(size for place, (size, _) in kept.items() if place not in own)
    assert activation_bytes(config) == pytest.approx(real, rel=0.1)


def test_recomputing_keeps_less_and_a_large_model_costs_no_memory() -> None:
    config = model_config("mae_hiera_huge_16x224")
    whole, recomputed = activation_bytes(config), activation_bytes(config, recompute=True)
    assert 0.5 * 2**30 < whole < 3 * 2**30
    assert recomputed < whole / 3
