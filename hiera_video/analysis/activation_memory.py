"""How many bytes a training step keeps for its backward pass, counted on fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hiera_video.models.blocks import HieraBlock
from hiera_video.models.config import ModelConfig
from hiera_video.models.decoder import CrossBlock
from hiera_video.models.presets import build_model

# Per view, bfloat16 autocast keeps 0.56 of what float32 keeps with fused attention (Base, one view more, counted the
# same way): the residual stream and the inputs of norms stay float32.
BF16_SHARE = 0.56


def activation_bytes(config: ModelConfig, *, recompute: bool = False) -> int:
    """Bytes that float32 training keeps for the backward pass of one view, with fused attention; nothing is allocated.

    Args:
        recompute: with activation checkpointing: the blocks' inputs, and what the largest block keeps.
    """
    with torch.device("meta"):
        model = build_model(config).train()
    with FakeTensorMode():
        own = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=isinstance(tensor, nn.Parameter))
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        ledger = _Ledger(own.values())
        for module in model.modules():
            if isinstance(module, HieraBlock | CrossBlock):
                module.register_forward_pre_hook(ledger.enter)
                module.register_forward_hook(ledger.leave)
        with torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda tensor: tensor):
            torch.func.functional_call(model, own, (torch.empty(1, config.in_chans, *config.input_size),))
    if not recompute:
        return ledger.bytes
    # What blocks read; a storage that several read (the memory of a `cross` decoder) counts once.
    inputs = sum(tensor.untyped_storage().nbytes() for tensor in ledger.inputs.values())
    return ledger.bytes - sum(ledger.of_blocks) + inputs + max(ledger.of_blocks)


class _Ledger:
    """The storages that autograd saves, each counted once, without the model's own."""

    def __init__(self, own: Any) -> None:
        self.bytes = 0
        self.of_blocks: list[int] = []
        self.inputs: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {tensor.untyped_storage()._cdata: tensor for tensor in own}
        self._before = 0

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._kept:
            self._kept[storage._cdata] = tensor  # kept alive, so that its address is not reused
            self.bytes += storage.nbytes()
        return tensor

    def enter(self, _block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._before = self.bytes
        self.inputs |= {value.untyped_storage()._cdata: value for value in inputs if isinstance(value, Tensor)}

    def leave(self, _block: nn.Module, _inputs: Any, _output: Any) -> None:
        self.of_blocks.append(self.bytes - self._before)
