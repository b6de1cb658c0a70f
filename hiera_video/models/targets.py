"""What the hidden tokens predict: normalised pixels, raw pixels, or histograms of oriented gradients.

Shapes: B batch, T frames, H height, W width, C colour channels, t predicted frames, h, w tokens of a frame per axis,
N predicted tokens, P values of one token, s side of a token's square in pixels.

Source: MAE (arXiv 2111.06377), MaskFeat (arXiv 2112.09133); Hiera (arXiv 2306.00989) §4, Tab. 3c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiera_video.models.config import MaskedAutoencoderConfig
from hiera_video.models.hog import HOG_CELL_PIXELS, HOG_CHANNEL_BINS, histograms_of_gradients

VARIANCE_EPSILON = 1e-6


def target_values(config: MaskedAutoencoderConfig) -> int:
    """Values that one token predicts: 768 for 16×16 pixels, 108 for HOG."""
    side = config.prediction_pixels
    if config.target == "hog":
        return (side // HOG_CELL_PIXELS) ** 2 * HOG_CHANNEL_BINS * config.in_chans
    return side**2 * config.in_chans


def token_targets(config: MaskedAutoencoderConfig, pixels: Tensor, token_index: Tensor) -> Tensor:
    """Targets of the tokens with these raster numbers: ``[B, 3, (T), H, W]``, ``[B, N]`` → ``[B, N, P]``, float32.

    In video only the first frame of each token's frames is predicted ("time-strided loss" of the public code).
    """
    frames = first_frames(config, pixels).float()
    if config.target == "hog":
        return gather_patches(histograms_of_gradients(frames), config.prediction_pixels // HOG_CELL_PIXELS,
                              token_index, channels_last=False)  # fmt: skip
    patches = gather_patches(frames, config.prediction_pixels, token_index, channels_last=config.is_video)
    return normalize_patches(patches) if config.target == "normalized_pixels" else patches


def first_frames(config: MaskedAutoencoderConfig, pixels: Tensor) -> Tensor:
    """The predicted frames ``[B, 3, t, H, W]``; an image counts as one."""
    return pixels[:, :, :: config.patch_stride[0]] if config.is_video else pixels.unsqueeze(2)


def gather_patches(frames: Tensor, side: int, token_index: Tensor, *, channels_last: bool) -> Tensor:
    """Squares of ``[B, C, t, H, W]`` by raster number ``[B, N]`` → ``[B, N, s·s·C]``.

    The public code orders the values (row, column, channel) in 3D and (channel, row, column) in 2D.
    """
    grid = patch_grid(frames, side)
    patches = grid[patch_coordinates(grid, token_index)]  # [B, N, C, s, s]
    return (patches.movedim(2, 4) if channels_last else patches).flatten(2)


def patch_grid(frames: Tensor, side: int) -> Tensor:
    """A view of ``[B, C, t, H, W]`` by squares: ``[B, t, h, w, C, s, s]``."""
    return frames.unfold(3, side, side).unfold(4, side, side).movedim(1, 4)


def patch_coordinates(grid: Tensor, token_index: Tensor) -> tuple[Tensor, ...]:
    """Raster numbers ``[B, N]`` as an index into the first four axes of a `patch_grid`."""
    height, width = grid.shape[2:4]
    samples = torch.arange(grid.shape[0], device=grid.device)[:, None]
    return samples, token_index // (height * width), token_index // width % height, token_index % width


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch by its own mean and deviation (MAE, arXiv 2111.06377)."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each patch ``[B, N, P]``: ``[B, N, 1]`` each."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_EPSILON).sqrt()
