"""Optimisation rules: parameter groups with layer decay, and the learning rate as a pure function of the step.

Sources: paper Tab. 11–13; layer decay as in BEiT (arXiv 2106.08254) and the MAE family.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hiera_video.flat_optimizer import FlatAdamW, FlatOptimizer, FlatSGD
from hiera_video.rules import Checked, Rules

REFERENCE_BATCH = 512
# With Nesterov's form; not confirmed by the paper, as in SlowFast (`SOLVER.MOMENTUM`, `SOLVER.NESTEROV`).
SGD_MOMENTUM = 0.9
POSITIONS = -1  # a layer of their own below the patch embedding, with a rate of their own
ENCODER_POSITIONS = re.compile(r"(?:encoder\.)?pos_embed\b")


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Optimizer and its rates."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (the paper, but for SSv2 and AVA), or SGD with Nesterov's momentum of 0.9."""
    learning_rate: float = 8e-4
    """Peak learning rate for a batch of 512 videos; scaled linearly with the batch (paper Tab. 11)."""
    batch_counts: Literal["videos", "views"] = "videos"
    """What the paper's batch sizes, and so the 512 of the learning rate, count: videos, of which each has
    `view.repeats` views in a step, as in SlowFast, MAE-ST and VideoMAE V2; or views. Not confirmed by the paper."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averages: 0.9, 0.95 in pretraining, 0.9, 0.999 in fine-tuning (paper Tab. 11)."""
    weight_decay: float = 0.05
    """Weight decay of matrices, the decoder's position table and mask token; biases, norms and the encoder's position
    tables have none."""
    layer_decay: float = 1.0
    """Factor on the learning rate per layer towards the input; 1 switches it off (paper Tab. 11b)."""
    layer_decay_positions: float | None = None
    """Factor on the learning rate of the encoder's position tables instead of what `layer_decay` gives the first layer:
    0.5 for Huge at 448 px (paper §A.2)."""
    clip_gradient_norm: float = 0.0
    """Highest global norm of the gradient: 0.02 in SlowFast's pretraining, 5 in fine-tuning; 0 switches it off."""

    def rules(self) -> Rules:
        yield "learning_rate", self.learning_rate > 0, "must be positive; the paper uses 8e-4 at batch 512"
        yield "layer_decay", 0.0 < self.layer_decay <= 1.0, "must lie in (0, 1]; use 1 to switch it off"
        factor = self.layer_decay_positions
        rule = "must lie in (0, 1]; use 0.5, or null for what layer_decay gives"
        yield "layer_decay_positions", factor is None or 0.0 < factor <= 1.0, rule
        rule = "each must lie in [0, 1); use 0.9, 0.95 or 0.9, 0.999"
        yield "betas", all(0.0 <= beta < 1.0 for beta in self.betas), rule
        for key in ("weight_decay", "clip_gradient_norm"):
            yield key, getattr(self, key) >= 0, "must not be negative; use 0 to switch it off"


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """Linear warm-up, then half a cosine."""

    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0 to the peak: 120 in pretraining, 10 in fine-tuning (paper Tab. 11)."""
    final_learning_rate: float = 1e-6
    """Learning rate at the end, as given (not scaled); not confirmed by the paper, 1e-6 as in SlowFast."""

    def rules(self) -> Rules:
        yield "warmup_epochs", self.warmup_epochs >= 0, "must not be negative; use 0 for none"
        yield "final_learning_rate", self.final_learning_rate >= 0, "must not be negative; use 0 or 1e-6"


def scaled_learning_rate(config: OptimizerConfig, global_batch: int, repeats: int) -> float:
    """Peak learning rate of a global batch of views, ``repeats`` of each video: linear scaling from 512."""
    counted = global_batch / repeats if config.batch_counts == "videos" else global_batch
    return config.learning_rate * counted / REFERENCE_BATCH


def learning_rate_at(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float = 0.0) -> float:
    """Learning rate of an optimizer step, 0-based: linear warm-up to ``peak``, then half a cosine to ``final``."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameters by layer and weight decay, in a fixed order.

    Each group has `params`, `weight_decay`, `lr_scale` (factor for the step's learning rate), `lr` (the peak for batch
    512 times that) and `name`. Layers count from the patch embedding (0) over the blocks (1 ...) to the head.
    """
    depth = _encoder_depth(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer_number(name, depth) if config.layer_decay < 1.0 else depth + 1
        scale = config.layer_decay ** (depth + 1 - layer)
        is_position = ENCODER_POSITIONS.match(name) is not None
        if is_position and config.layer_decay_positions is not None:
            layer, scale = POSITIONS, config.layer_decay_positions
        # Hiera's `no_weight_decay` names the encoder's tables alone; MAE-ST likewise lets the mask token decay.
        decays = parameter.ndim > 1 and not is_position
        new_group = {
            "name": f"{'positions' if layer == POSITIONS else f'layer{layer}'}_{'decay' if decays else 'no_decay'}",
            "params": [],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": scale,
            "lr": config.learning_rate * scale,
        }
        groups.setdefault((layer, decays), new_group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> FlatOptimizer:
    """The configured optimizer, with the rates of `parameter_groups` in a single group."""
    groups = parameter_groups(model, config)
    if config.name == "adamw":
        return FlatAdamW(groups, config.learning_rate, config.betas)
    return FlatSGD(groups, config.learning_rate, SGD_MOMENTUM)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the step's learning rate, of which every parameter has its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _encoder_depth(model: nn.Module) -> int:
    names = [re.match(r"(?:encoder\.)?blocks\.(\d+)\.", name) for name, _ in model.named_parameters()]
    return 1 + max((int(match[1]) for match in names if match), default=-1)


def _layer_number(name: str, depth: int) -> int:
    if re.match(r"(?:encoder\.)?(?:patch_embed|pos_embed)\.", name):
        return 0
    block = re.match(r"(?:encoder\.)?blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1
