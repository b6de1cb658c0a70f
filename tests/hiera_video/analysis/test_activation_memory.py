"""What is kept for the backward pass, against autograd on real tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hiera_video.analysis.activation_memory import activation_bytes
from hiera_video.models.blocks import HieraBlock
from hiera_video.models.decoder import CrossBlock
from hiera_video.models.presets import build_model, model_config, set_activation_checkpointing

MAE = "mae_hiera_test_8x64"


class Kept:
    """What autograd saves in one forward pass over real tensors, in all and within each block."""

    def __init__(self, model: nn.Module, size: tuple[int, ...]) -> None:
        self.own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        self.storages: dict[int, Tensor] = {}
        self.of_blocks: list[int] = []
        for module in model.modules():
            if isinstance(module, HieraBlock | CrossBlock):
                module.register_forward_pre_hook(lambda *_: self.of_blocks.append(-self.bytes))
                module.register_forward_hook(self.leave)
        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor):
            self.output = model(torch.zeros(1, 3, *size))

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.storages.values())

    def keep(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.own:
            self.storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def leave(self, *_: object) -> None:
        self.of_blocks[-1] += self.bytes


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (MAE, {}),
        (MAE, {"decoder": "subset"}),
        (MAE, {"decoder": "cross", "decoder_depth": 3}),
        ("hiera_test_8x64", {}),
        ("hiera_tiny_224", {}),
    ],
    ids=["full", "subset", "cross", "classifier", "tiny"],
)
def test_as_much_as_autograd_keeps(name: str, overrides: dict[str, object]) -> None:
    config = model_config(name, **overrides)
    model = build_model(config)
    whole = Kept(model, config.input_size)
    assert activation_bytes(config) == pytest.approx(whole.bytes, rel=0.1)
    model = build_model(config)
    set_activation_checkpointing(model, True)
    inputs = Kept(model, config.input_size)
    expected = inputs.bytes + max(whole.of_blocks)
    assert activation_bytes(config, recompute=True) == pytest.approx(expected, rel=0.1)


def test_recomputing_keeps_less_and_a_large_model_costs_no_memory() -> None:
    config = model_config("mae_hiera_huge_16x224")
    whole, recomputed = activation_bytes(config), activation_bytes(config, recompute=True)
    assert 0.5 * 2**30 < whole < 3 * 2**30
    assert recomputed < whole / 3
