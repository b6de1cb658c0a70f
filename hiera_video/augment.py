"""From decoded frames to the model's input, on the device where the model runs.

Shapes: B batch, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIXEL_MEAN = 0.45
PIXEL_STD = 0.225


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the decoded frames, one draw per sample."""

    horizontal_flip: float = 0.5
    """Probability of mirroring a sample; 0 where left and right are labels (SSv2, moving shapes)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.horizontal_flip <= 1.0:
            raise ValueError(f"horizontal_flip={self.horizontal_flip}: must lie in [0, 1]; use 0.5, or 0 for none")


def normalize_video(frames: Tensor) -> Tensor:
    """uint8 frames ``[B, T, H, W, 3]`` → float32 ``[B, 3, T, H, W]``, mean 0.45, deviation 0.225 (SlowFast).

    Images go through as ``[B, H, W, 3]`` → ``[B, 3, H, W]``.

    Raises:
        ValueError: another type or layout.
    """
    if frames.dtype != torch.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}: must be uint8 [B, T, H, W, 3] (or [B, H, W, 3]), values "
            "0 to 255, colours last; convert them, or skip this step when they are normalised already"
        )
    pixels = frames.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.mul_(1 / (255 * PIXEL_STD)).sub_(PIXEL_MEAN / PIXEL_STD)


def denormalize_video(pixels: Tensor) -> Tensor:
    """The inverse of `normalize_video`, clamped: float ``[B, 3, T, H, W]`` → uint8 ``[B, T, H, W, 3]``."""
    frames = (pixels.float() * PIXEL_STD + PIXEL_MEAN) * 255
    return frames.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)


def augment(pixels: Tensor, config: AugmentConfig, flip_noise: Tensor | None = None) -> Tensor:
    """Random changes of normalised pixels ``[B, 3, (T), H, W]``; all frames of a sample alike.

    Args:
        flip_noise: uniform numbers ``[B]``, for instance `sample_uniforms(seeds, 1)[:, 0]`; drawn when missing.
    """
    if config.horizontal_flip == 0.0:
        return pixels
    if flip_noise is None:
        flip_noise = torch.rand(pixels.shape[0], device=pixels.device)
    flipped = (flip_noise.to(pixels.device) < config.horizontal_flip).view(-1, *[1] * (pixels.ndim - 1))
    return torch.where(flipped, pixels.flip(-1), pixels)
