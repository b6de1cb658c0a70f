"""Hidden pixels stay hidden, and visible tokens are those of the dense convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiera_video.models.patch_embedding import PatchEmbed
from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import (
    random_keep_mask,
    visible_unit_index,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint_hidden(pixels: Tensor, keep_mask: Tensor, patch_embed: PatchEmbed, value: Tensor) -> Tensor:
    """The pixels with `value` wherever a unit is hidden."""
    visible = keep_mask.view(-1, 1, *patch_embed.order.unit_grid)
    for axis, size in enumerate(patch_embed.unit_pixels):
        visible = visible.repeat_interleave(size, dim=2 + axis)
    return torch.where(visible, pixels, value)


@given(st.integers(0, 2**31), st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_hidden_pixels_never_change_visible_tokens(seed: int, ratio: float, video: bool) -> None:
    name, size = ("mae_hiera_test_8x64", (4, 64, 96)) if video else ("mae_hiera_tiny_224", (96, 128))
    mae = create_model(name, input_size=size, mask_ratio=0.5, embed_dim=8, stages=(1, 1, 1, 1)).eval()
    pixels = torch.randn(2, 3, *size, generator=seeded(seed))
    keep_mask = random_keep_mask(2, mae.num_mask_units, min(ratio, 1 - 3.5 / mae.num_mask_units), seeded(seed + 1))
    painted = paint_hidden(pixels, keep_mask, mae.encoder.patch_embed, torch.tensor(1e6))
    with torch.no_grad():
        for clean, dirty in zip(mae.encoder(pixels, keep_mask), mae.encoder(painted, keep_mask), strict=True):
            assert torch.equal(clean, dirty)


@pytest.mark.parametrize(("name", "size"), [("hiera_test_8x64", (6, 64, 64)), ("hiera_tiny_224", (96, 64))])
def test_masked_and_dense_encoders_agree_within_the_mask_unit_stages(name: str, size: tuple[int, ...]) -> None:
    model = create_model(name, input_size=size, embed_dim=16, stages=(1, 2, 1, 1)).eval()
    keep_mask = random_keep_mask(2, model.num_mask_units, 0.4, seeded(1))
    blanked = paint_hidden(torch.randn(2, 3, *size), keep_mask, model.encoder.patch_embed, torch.tensor(0.0))
    unit_index = visible_unit_index(keep_mask, int(keep_mask[0].sum()))
    with torch.no_grad():
        dense = model.encoder.encode(blanked)
        masked = model.encoder.encode(blanked, keep_mask, unit_index)
    for stage in (0, 1):
        expected = torch.stack([tokens[index] for tokens, index in zip(dense[stage].tokens, unit_index, strict=True)])
        torch.testing.assert_close(masked[stage].tokens, expected, rtol=1e-5, atol=1e-5)
