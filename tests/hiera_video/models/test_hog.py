"""Histograms of gradients against loops."""

from __future__ import annotations

import math

import numpy as np
import torch

from hiera_video.models.hog import histograms_of_gradients


def reference_histogram(channel: np.ndarray) -> np.ndarray:
    """One channel's histograms by loops: Sobel on reflected borders, nine unsigned bins, L2 norm per 8×8 cell."""
    height, width = channel.shape
    padded = np.pad(channel, 1, mode="reflect")
    votes = np.zeros((height // 8, width // 8, 9))
    for row in range(height):
        for column in range(width):
            window = padded[row : row + 3, column : column + 3]
            across = (window[:, 0] - window[:, 2]) @ [1, 2, 1]
            down = (window[0] - window[2]) @ [1, 2, 1]
            orientation = math.atan2(across, down) / math.pi * 9
            votes[row // 8, column // 8, math.floor(orientation) % 9] += math.hypot(across, down)
    return votes / np.maximum(np.linalg.norm(votes, axis=-1, keepdims=True), 1e-12)


def test_histograms_of_gradients_against_loops() -> None:
    frames = torch.randn(2, 3, 2, 16, 24, generator=torch.Generator().manual_seed(1))
    histograms = histograms_of_gradients(frames).reshape(2, 3, 9, 2, 2, 3)
    for clip in range(2):
        for channel in range(3):
            expected = reference_histogram(frames[clip, channel, 1].double().numpy())
            actual = histograms[clip, channel, :, 1].permute(1, 2, 0)
            np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)
