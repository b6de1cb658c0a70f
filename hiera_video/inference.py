"""From decoded frames to class probabilities, for scoring, serving and exported files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiera_video.augmentation.basic import model_input
from hiera_video.models.hiera import Hiera


def embed_frames(model: Hiera, frames: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """uint8 frames ``[B, T, H, W, 3]`` → the features before the head, float32 ``[B, C]``; ``dtype``: autocast."""
    if dtype is None:
        return model.embed(model_input(frames, model.config))
    with torch.autocast(frames.device.type, dtype):
        return model.embed(model_input(frames, model.config)).float()


class Probabilities(nn.Module):
    """uint8 frames ``[B, T, H, W, 3]`` → softmax scores, float32 ``[B, classes]``.

    Args:
        dtype: arithmetic of the model up to its head (autocast); None for float32. The head is float32: bfloat16 keeps
            eight bits of a logit, and close classes would tie.
    """

    def __init__(self, model: Hiera, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames ``[B, T, H, W, 3]`` → softmax scores, float32 ``[B, classes]``."""
        scores: Tensor = self.model.head(embed_frames(self.model, frames, self._dtype)).softmax(dim=1)
        return scores
