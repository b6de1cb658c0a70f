"""What a worker holds by ZeRO stage, and the size of a checkpoint."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from hiera_video.analysis.activation_memory import BF16_SHARE, activation_bytes
from hiera_video.analysis.flops import complexity_of
from hiera_video.models.config import EncoderConfig
from hiera_video.models.presets import build_model
from jobs.training.config import TrainConfig
from jobs.training.sharding.costs import (
    BF16_BYTES,
    FLOAT32_BYTES,
    STAGES,
    WIRE_BYTES,
    Sharding,
    kept_bytes,
    weights_of_products,
    wire_type,
)

GIB = 2**30


@dataclass(frozen=True)
class ModelSize:
    """A model by what it costs."""

    parameters: int
    in_products: int
    """Parameters that are used in matrix products alone."""
    multiply_adds: int
    """Of a forward pass over one view."""
    activation_bytes: int
    """That float32 training keeps for the backward pass of one view."""


@functools.cache
def size_of(config: EncoderConfig, recompute: bool = False) -> ModelSize:
    """Count a model by its shapes; nothing is allocated or computed, and the largest takes seconds."""
    model: Any = config
    size = complexity_of(model)
    with torch.device("meta"):
        in_products = sum(parameter.numel() for parameter in weights_of_products(build_model(model)))
    return ModelSize(size.parameters, in_products, size.multiply_adds, activation_bytes(model, recompute=recompute))


def planned_sharding(config: TrainConfig, parameters: int, in_products: int) -> Sharding:
    """What decides the costs of sharding: of the fewest workers, which have the largest shares."""
    workers = config.worker_numbers[0]
    micro_batches = config.global_batch // config.micro_batch // workers
    wire_bytes = WIRE_BYTES[wire_type(config, workers)]
    return Sharding(parameters, workers, micro_batches, _moments(config), wire_bytes, in_products)


def worker_bytes(config: TrainConfig, sharding: Sharding, bytes_per_view: int) -> dict[int, dict[str, float]]:
    """Memory of one worker by ZeRO stage and purpose, in bytes; activations are an estimate.

    Args:
        bytes_per_view: what float32 training keeps for the backward pass of one view.
    """
    activations = float(config.micro_batch * bytes_per_view)
    if config.precision == "bf16":  # and autocast keeps a copy of the weights in bfloat16
        activations = activations * BF16_SHARE + BF16_BYTES * sharding.parameters
    return {stage: {**kept_bytes(stage, sharding), "activations": activations} for stage in STAGES}


def worker_memory(config: TrainConfig, sharding: Sharding, bytes_per_view: int) -> dict[int, str]:
    """`worker_bytes` as text in GiB: the sum, and its parts."""
    memory = {}
    for stage, parts in worker_bytes(config, sharding, bytes_per_view).items():
        parts_gib = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        memory[stage] = f"{sum(parts.values()) / GIB:.2f} ({parts_gib})"
    return memory


def checkpoint_bytes(config: TrainConfig, parameters: int) -> int:
    """Weights and optimizer state in float32."""
    return FLOAT32_BYTES * parameters * (1 + _moments(config))


def _moments(config: TrainConfig) -> int:
    return 2 if config.optimizer.name == "adamw" else 1
