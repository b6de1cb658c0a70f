"""A model under training: what turns a micro-batch into a loss, into figures, into features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from jobs.training.micro_batch import MicroBatch

ModelT = TypeVar("ModelT", bound=nn.Module)


class TrainStep(nn.Module, Generic[ModelT]):
    """A model with its loss; subclasses say what ``forward`` does with a micro-batch."""

    def __init__(self, model: ModelT, precision: str = "fp32") -> None:
        super().__init__()
        self.model: ModelT = model
        self._precision = precision

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def forward(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch: a scalar, the mean over its samples."""
        raise TypeError(f"{type(self).__name__} must define how its loss is computed")

    def measure(self, batch: MicroBatch) -> Mapping[str, float]:
        """Figures of one validation view, without any draw that depends on the step; none: nothing is measured."""
        return {}

    def multiply_adds(self) -> int | None:
        """Of a step, forward and backward, over one view, by the model's shapes; None: unknown."""
        return None

    def embed(self, batch: MicroBatch) -> Tensor | None:
        """Features ``[B, C]`` of the encoder, for a nearest-neighbour probe; None: no probe."""
        return None

    def picture(self, frames: Tensor, path: Path) -> bool:
        """Draw what the model makes of ``[B, T, H, W, 3]`` into a PNG; False: there is nothing to draw."""
        return False
