"""Small models for tests of the tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import create_model


def small_autoencoder(**options: object) -> MaskedAutoencoder:
    """The test preset with weights from a fixed seed, in evaluation mode."""
    torch.manual_seed(0)
    mae = create_model("mae_hiera_test_8x64", **options)
    assert isinstance(mae, MaskedAutoencoder)
    return mae.eval()


def loss_of(output: Any) -> Tensor:
    """A scalar of any model's output."""
    return output.square().mean() if isinstance(output, Tensor) else output.loss
