"""Parameters and multiply-adds of a model, as the paper's tables count them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from hiera_video.models.config import ModelConfig
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import build_model, model_config

LAYER_NORM_OPERATIONS = 5


class Complexity(NamedTuple):
    """The size of a model."""

    parameters: int
    multiply_adds: int
    """Of one forward pass over one input. The papers call one multiply-add one FLOP."""
    encoder_multiply_adds: int
    """The encoder's part: of a masked autoencoder, over the visible units at its mask ratio."""


def complexity(name: str, **overrides: Any) -> Complexity:
    """Count a preset's parameters and multiply-adds: matrix products, convolutions, and five per value of a LayerNorm.

    That is how fvcore counts, and gives the paper's tables; GELU, softmax and sums are left out. Counted on the meta
    device: nothing is allocated or computed, and the largest model takes a second.

    Raises:
        ValueError: as `create_model`.
    """
    return complexity_of(model_config(name, **overrides))


def complexity_of(config: ModelConfig) -> Complexity:
    """`complexity` of a model config."""
    with torch.device("meta"), torch.no_grad():
        model = build_model(config).eval()
        pixels = torch.empty(1, config.in_chans, *config.input_size)
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.native_layer_norm: _layer_norm_flops})
        with counter:
            model(pixels)
    counts = counter.get_flop_counts()
    total = counter.get_total_flops() // 2
    part = "decoder" if isinstance(model, MaskedAutoencoder) else "head"
    rest = sum(counts.get(f"{type(model).__name__}.{part}", {}).values()) // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(parameters, total, total - rest)


def _layer_norm_flops(input_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * LAYER_NORM_OPERATIONS * math.prod(input_shape)
