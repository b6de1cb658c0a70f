"""The options of pretraining: decoders, targets, fusion, and the pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hiera_video.analysis.reconstruct import reconstruct
from hiera_video.augmentation.basic import denormalize_video
from hiera_video.models.hog import histograms_of_gradients
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import random_keep_mask
from hiera_video.models.targets import gather_patches


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def keep_mask() -> Tensor:
    return random_keep_mask(2, 16, 0.75, seeds=[1, 2])


def build(**options: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    mae = create_model("mae_hiera_test_8x64", **options)
    assert isinstance(mae, MaskedAutoencoder)
    return mae.eval()


def raster_order(mae: MaskedAutoencoder, keep_mask: Tensor) -> Tensor:
    """Raster numbers of the hidden tokens, found the slow way."""
    hidden = ~keep_mask[:, mae.unit_of_token]
    return torch.stack([row.nonzero()[:, 0] for row in hidden])


def test_predictions_and_targets_are_the_hidden_tokens_in_raster_order(pixels: Tensor, keep_mask: Tensor) -> None:
    mae = build(target="pixels")
    output = mae(pixels, keep_mask=keep_mask)
    expected = gather_patches(pixels[:, :, ::2], 16, raster_order(mae, keep_mask), channels_last=True).flatten(0, 1)
    assert output.prediction.shape == output.target.shape == (2 * 12 * 4, 768)
    assert torch.equal(output.target, expected)
    assert torch.equal(output.loss, (output.prediction - output.target).square().mean())


def test_subset_over_all_hidden_tokens_is_the_full_decoder(pixels: Tensor, keep_mask: Tensor) -> None:
    full, subset = build(), build(decoder="subset", decoder_share=1.0)
    subset.load_state_dict(full.state_dict())
    torch.testing.assert_close(subset(pixels, keep_mask=keep_mask).loss, full(pixels, keep_mask=keep_mask).loss)


@pytest.mark.parametrize("decoder", ["subset", "cross"])
def test_a_share_is_a_random_choice_of_the_hidden_tokens(decoder: str, pixels: Tensor, keep_mask: Tensor) -> None:
    mae = build(decoder=decoder, decoder_share=0.25, target="pixels")
    generator = torch.Generator().manual_seed(3)
    draws = mae.draw(2, generator)
    output = mae(pixels, keep_mask=keep_mask, draws=draws)
    assert draws.decoder_tokens is not None
    chosen = draws.decoder_tokens.argsort(dim=1)[:, :12].sort(dim=1).values
    index = raster_order(mae, keep_mask).gather(1, chosen)
    assert torch.equal(output.target, gather_patches(pixels[:, :, ::2], 16, index, channels_last=True).flatten(0, 1))


def test_cross_queries_do_not_see_each_other(pixels: Tensor, keep_mask: Tensor) -> None:
    mae = build(decoder="cross", decoder_share=1.0)
    visible, index = torch.randn(2, 16, 64), torch.arange(16).expand(2, 16)
    hidden = torch.arange(16, 64).expand(2, 48)
    together = mae.decoder(visible, index, hidden)
    torch.testing.assert_close(together[:, :5], mae.decoder(visible, index, hidden[:, :5]))


def test_fusion_switched_off_takes_the_last_map_alone(pixels: Tensor, keep_mask: Tensor) -> None:
    mae = build(multi_scale_fusion=False)
    assert len(list(mae.fusion.parameters())) == 0
    stages = mae.encoder.encode(pixels, keep_mask, keep_mask.nonzero()[:, 1].view(2, 4))
    assert mae.fusion(stages) is stages[-1].tokens


@pytest.mark.parametrize("options", [{"decoder_depth": 3}, {"decoder_embed_dim": 32}, {"mask_ratio": 0.5}])
def test_ablation_options(options: dict[str, object], pixels: Tensor) -> None:
    output = build(**options)(pixels)
    output.loss.backward()
    assert output.loss.isfinite()


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


def test_hog_target_has_108_values_a_patch(pixels: Tensor) -> None:
    output = build(target="hog")(pixels)
    assert output.target.shape[1] == 108
    assert output.target.min() >= 0
    # Four cells of three channels, each of norm 1.
    torch.testing.assert_close(output.target.square().sum(dim=1), torch.full((96,), 12.0))
    output.loss.backward()


@pytest.mark.parametrize("target", ["normalized_pixels", "pixels"])
@pytest.mark.parametrize(("name", "size"), [("mae_hiera_test_8x64", (8, 64, 64)), ("mae_hiera_tiny_224", (64, 96))])
def test_pictures_of_a_perfect_prediction_show_the_original(name: str, size: tuple[int, ...], target: str) -> None:
    mae = create_model(name, input_size=size, target=target, mask_ratio=0.5, stages=(1, 1, 1, 1), decoder_depth=1)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    output = mae(pixels)
    pictures = reconstruct(mae, pixels, output._replace(prediction=output.target))
    original = denormalize_video(pixels[:, :, ::2] if len(size) == 3 else pixels.unsqueeze(2))
    assert torch.equal(pictures.original, original)
    assert (pictures.reconstruction.int() - original.int()).abs().max() <= 1
    grey = (pictures.masked == denormalize_video(torch.zeros(1, 3, 1, 1, 1))).all(dim=-1)
    hidden_share = (~output.keep_mask).float().mean()
    assert grey.float().mean() == pytest.approx(float(hidden_share), abs=0.01)
