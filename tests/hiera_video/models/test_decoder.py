"""The three decoders: what attends to what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiera_video.models.random_draws import random_keep_mask
from tests.support.small_models import small_autoencoder


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def keep_mask() -> Tensor:
    return random_keep_mask(2, 16, 0.75, seeds=[1, 2])


def test_subset_over_all_hidden_tokens_is_the_full_decoder(pixels: Tensor, keep_mask: Tensor) -> None:
    full, subset = small_autoencoder(), small_autoencoder(decoder="subset", decoder_share=1.0)
    subset.load_state_dict(full.state_dict())
    torch.testing.assert_close(subset(pixels, keep_mask=keep_mask).loss, full(pixels, keep_mask=keep_mask).loss)


def test_cross_queries_do_not_see_each_other(pixels: Tensor, keep_mask: Tensor) -> None:
    mae = small_autoencoder(decoder="cross", decoder_share=1.0)
    visible, index = torch.randn(2, 16, 64), torch.arange(16).expand(2, 16)
    hidden = torch.arange(16, 64).expand(2, 48)
    together = mae.decoder(visible, index, hidden)
    torch.testing.assert_close(together[:, :5], mae.decoder(visible, index, hidden[:, :5]))
