"""From decoded frames to class probabilities, for scoring, serving and exported files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiera_video.augmentation.basic import normalize_video
from hiera_video.models.hiera import Hiera


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
        if self._dtype is None:
            logits = self.model(normalize_video(frames))
        else:
            with torch.autocast(frames.device.type, self._dtype):
                features = self.model.embed(normalize_video(frames))
            logits = self.model.head(features.float())
        scores: Tensor = logits.softmax(dim=1)
        return scores
