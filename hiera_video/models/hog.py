"""Histograms of oriented gradients as a reconstruction target.

Source: MaskFeat (arXiv 2112.09133) and its code in facebookresearch/SlowFast; Hiera's ablation (paper Tab. 3c).

Shapes: B batch, C colour channels, t predicted frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.on_device import constants

HOG_CELL_PIXELS = 8
HOG_CHANNEL_BINS = 9


def histograms_of_gradients(frames: Tensor) -> Tensor:
    """Nine unsigned orientations per 8×8 pixels and channel: ``[B, C, t, H, W]`` → ``[B, C·9, t, H/8, W/8]``.

    Sobel gradients with reflected borders; each pixel votes with its gradient's norm for one orientation; the nine
    votes of a cell and channel are divided by their L2 norm.
    """
    batch, channels, count, height, width = frames.shape
    rows, columns = height // HOG_CELL_PIXELS, width // HOG_CELL_PIXELS
    images = frames.transpose(1, 2).reshape(batch * count * channels, 1, height, width)
    across, down = _sobel(images)
    norm = torch.hypot(across, down)
    orientation = torch.atan2(across, down) / math.pi * HOG_CHANNEL_BINS
    bins = orientation.floor().long() % HOG_CHANNEL_BINS
    votes = functional.one_hot(bins, HOG_CHANNEL_BINS).to(norm) * norm.unsqueeze(-1)
    cells = votes.reshape(-1, rows, HOG_CELL_PIXELS, columns, HOG_CELL_PIXELS, HOG_CHANNEL_BINS).sum(dim=(2, 4))
    cells = functional.normalize(cells, dim=-1).reshape(batch, count, channels, rows, columns, HOG_CHANNEL_BINS)
    return cells.permute(0, 2, 5, 1, 3, 4).flatten(1, 2)


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    kernel = constants([1.0, 0.0, -1.0, 2.0, 0.0, -2.0, 1.0, 0.0, -1.0], images.device, images.dtype).view(3, 3)
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, kernel[None, None]), functional.conv2d(padded, kernel.T[None, None])
