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
    learning: int
    """Parameters that learn."""
    in_products: int
    """Parameters that are used in matrix products alone."""
    multiply_adds: int
    """Of a forward pass over one view."""
    activation_bytes: int
    """That float32 training keeps for the backward pass of one view."""


@functools.cache
def size_of(config: EncoderConfig, recompute: bool = False, learning_names: tuple[str, ...] = ("",)) -> ModelSize:
    """Count a model by its shapes; nothing is allocated or computed, and the largest takes seconds.

    Args:
        learning_names: how the names of parameters begin that learn.
    """
    complexity: Any = config
    size = complexity_of(complexity)
    with torch.device("meta"):
        model = build_model(complexity)
    return ModelSize(
        parameters=size.parameters,
        learning=sum(each.numel() for name, each in model.named_parameters() if name.startswith(learning_names)),
        in_products=sum(each.numel() for each in weights_of_products(model)),
        multiply_adds=size.multiply_adds,
        activation_bytes=activation_bytes(complexity, recompute=recompute),
    )


def trained_size(config: TrainConfig, model: EncoderConfig) -> ModelSize:
    """The size of the model that a configuration trains."""
    return size_of(model, config.activation_checkpointing, config.learning_names)


def planned_sharding(config: TrainConfig, size: ModelSize) -> Sharding:
    """What decides the costs of sharding: of the fewest workers, which have the largest shares."""
    workers = config.worker_numbers[0]
    return Sharding(
        size.learning,
        workers,
        micro_batches=config.global_batch // config.micro_batch // workers,
        moments=2 if config.optimizer.name == "adamw" else 1,
        wire_bytes=WIRE_BYTES[wire_type(config, workers)],
        in_products=size.in_products,
        frozen=size.parameters - size.learning,
    )


def worker_bytes(config: TrainConfig, sharding: Sharding, bytes_per_view: int) -> dict[int, dict[str, float]]:
    """Memory of one worker by ZeRO stage and purpose, in bytes; activations are an estimate.

    Args:
        bytes_per_view: what float32 training keeps for the backward pass of one view.
    """
    activations = float(config.micro_batch * bytes_per_view)
    if config.precision == "bf16":  # and autocast keeps a copy of the weights that learn in bfloat16
        activations = activations * BF16_SHARE + BF16_BYTES * sharding.parameters
    return {stage: {**kept_bytes(stage, sharding), "activations": activations} for stage in STAGES}


def worker_memory(config: TrainConfig, sharding: Sharding, bytes_per_view: int) -> dict[int, str]:
    """`worker_bytes` as text in GiB: the sum, and its parts."""
    memory = {}
    for stage, parts in worker_bytes(config, sharding, bytes_per_view).items():
        parts_gib = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        memory[stage] = f"{sum(parts.values()) / GIB:.2f} ({parts_gib})"
    return memory


def checkpoint_bytes(sharding: Sharding) -> int:
    """Weights in float32, and the optimizer state of those that learn."""
    return FLOAT32_BYTES * (sharding.elements + sharding.moments * sharding.parameters)
