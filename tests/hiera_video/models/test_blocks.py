"""Blocks: pooling, the last block of the decoder, stochastic depth, initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hiera_video.models.blocks import HieraBlock, pool_tokens
from hiera_video.models.presets import create_model
from hiera_video.models.token_order import TokenOrder


def test_pooling_in_unrolled_order_is_max_pooling_in_space() -> None:
    order = TokenOrder((4, 16, 8), ((1, 2, 2),) * 3)
    grid = torch.randn(2, 4, 16, 8, 5)
    units = order.unroll(grid.flatten(1, 3))
    expected = grid.permute(0, 4, 1, 2, 3)
    for poolings in range(1, 4):
        units = pool_tokens(units, 4)
        expected = functional.max_pool3d(expected, (1, 2, 2))
        assert torch.equal(order.reroll(units, poolings), expected.permute(0, 2, 3, 4, 1))


def test_last_decoder_block_may_leave_visible_tokens_out() -> None:
    mae = create_model("mae_hiera_test_8x64")
    block, tokens = mae.decoder.blocks[-1], torch.randn(2, 1, 20, 16)
    torch.testing.assert_close(block(tokens, None, 7), block(tokens)[:, :, 7:])


def test_stochastic_depth_scales_each_branch_by_sample() -> None:
    block, tokens = HieraBlock(8, 8, 2, 4.0), torch.randn(2, 3, 4, 8)
    scales = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(block(tokens, scales)[0], tokens[0])
    assert torch.equal(block(tokens, scales)[1], block(tokens)[1])


@pytest.mark.parametrize(("name", "bias"), [("hiera_test_8x64", 0.02), ("mae_hiera_test_8x64", 0.0)])
def test_initial_biases(name: str, bias: float) -> None:
    """As the public code: the classifier has biases of 0.02 also in its norms, the masked autoencoder none."""
    for module in create_model(name).encoder.blocks.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            assert (module.bias == bias).all()
            assert (module.weight == 1).all() == isinstance(module, nn.LayerNorm)
