"""Masks: how many units they keep, that hidden pixels stay hidden, and that draws decide everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiera_video.models.blocks import Block
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.patch_embedding import PatchEmbedding
from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import (
    Draws,
    drop_path_scales,
    random_keep_mask,
    sample_uniforms,
    validate_keep_mask,
    visible_unit_index,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint_hidden(pixels: Tensor, keep_mask: Tensor, patch_embed: PatchEmbedding, value: Tensor) -> Tensor:
    """The pixels with `value` wherever a unit is hidden."""
    visible = keep_mask.view(-1, 1, *patch_embed.order.unit_grid)
    for axis, size in enumerate(patch_embed.unit_pixels):
        visible = visible.repeat_interleave(size, dim=2 + axis)
    return torch.where(visible, pixels, value)


@given(st.integers(1, 4), st.integers(3, 400), st.floats(0.0, 0.99))
@settings(max_examples=80, deadline=None)
def test_every_sample_keeps_the_count_of_the_ratio(batch: int, units: int, ratio: float) -> None:
    due = int(units * (1 - ratio))
    if due < 3:
        with pytest.raises(ValueError, match="at least 3"):
            random_keep_mask(batch, units, ratio)
        return
    keep_mask = random_keep_mask(batch, units, ratio, seeded(0))
    assert keep_mask.sum(dim=1).tolist() == [due] * batch
    assert validate_keep_mask(keep_mask, units) == due


def test_counts_of_the_paper() -> None:
    assert int(random_keep_mask(1, 392, 0.9).sum()) == 39
    assert int(random_keep_mask(1, 49, 0.6).sum()) == 19


def test_a_samples_mask_depends_on_its_seed_alone() -> None:
    batch = random_keep_mask(3, 72, 0.9, seeds=[11, 12, 13])
    other = random_keep_mask(2, 72, 0.9, seeds=[13, 11])
    assert torch.equal(batch[[2, 0]], other)
    assert torch.equal(batch, random_keep_mask(3, 72, 0.9, [seeded(11), seeded(12), seeded(13)]))
    assert not torch.equal(batch[0], batch[1])
    with pytest.raises(ValueError, match="3 seeds or generators for a batch of 2"):
        random_keep_mask(2, 72, 0.9, seeds=[1, 2, 3])


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


@pytest.mark.parametrize("decoder", ["full", "subset", "cross"])
def test_a_training_step_is_a_function_of_mask_and_draws(decoder: str) -> None:
    mae = create_model("mae_hiera_test_8x64", drop_path_rate=0.5, decoder=decoder)
    assert isinstance(mae, MaskedAutoencoder)
    pixels = torch.randn(4, 3, 8, 64, 64)
    keep_mask = random_keep_mask(4, 16, 0.75, seeds=range(4))
    first = mae(pixels, keep_mask=keep_mask, draws=mae.draw(4, seeded(5)))
    torch.manual_seed(99)
    second = mae(pixels, keep_mask=keep_mask, draws=mae.draw(4, seeded(5)))
    other = mae(pixels, keep_mask=keep_mask, draws=mae.draw(4, seeded(6)))
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.equal(first.loss, other.loss)


def test_classifier_draws_drive_drop_path_and_dropout() -> None:
    model = create_model("hiera_test_8x64", drop_path_rate=0.5, head_dropout=0.5)
    pixels = torch.randn(4, 3, 8, 64, 64)
    draws = model.draw(4, seeded(1))
    assert draws.drop_path is not None
    assert draws.head_dropout is not None
    assert draws.drop_path.shape == (5, 2, 4)
    assert torch.equal(model(pixels, draws=draws), model(pixels, draws=draws))
    assert not torch.equal(model(pixels, draws=draws), model(pixels, draws=model.draw(4, seeded(2))))
    model.eval()
    assert torch.equal(model(pixels, draws=draws), model(pixels))


def test_drop_path_drops_a_samples_branch_or_rescales_it() -> None:
    noise = torch.tensor([0.0, 0.49, 0.5, 0.99]).expand(1, 2, 4)
    assert drop_path_scales(noise, torch.tensor([0.5])).tolist() == [[[0.0, 0.0, 2.0, 2.0]] * 2]
    assert drop_path_scales(noise, torch.tensor([0.0])).tolist() == [[[1.0] * 4] * 2]
    block, tokens = Block(8, 8, 2, 4.0), torch.randn(2, 3, 4, 8)
    scales = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(block(tokens, scales)[0], tokens[0])
    assert torch.equal(block(tokens, scales)[1], block(tokens)[1])


def test_missing_draws_are_drawn() -> None:
    mae = create_model("mae_hiera_test_8x64", drop_path_rate=0.5)
    pixels = torch.randn(4, 3, 8, 64, 64)
    assert not torch.equal(mae(pixels).loss, mae(pixels).loss)
    assert mae(pixels, draws=Draws()).loss.isfinite()


def test_sample_uniforms_come_from_their_own_seeds() -> None:
    rows = sample_uniforms([3, 4], 5)
    assert torch.equal(rows[1], torch.rand(5, generator=seeded(4)))
