"""One pass of the masked autoencoder: what is hidden, predicted and fused, and the masks that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import (
    Draws,
    random_keep_mask,
    validate_keep_mask,
)
from hiera_video.models.targets import gather_patches
from tests.support.official import (
    PUBLIC_PRESETS,
    TOLERANCE,
    assert_same_gradients,
    half_mask,
    peers,
    relative_difference,
    small_pixels,
)
from tests.support.small_models import small_autoencoder

CLIP = (2, 3, 8, 64, 64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def keep_mask() -> Tensor:
    return random_keep_mask(2, 16, 0.75, seeds=[1, 2])


def raster_order(mae: MaskedAutoencoder, keep_mask: Tensor) -> Tensor:
    """Raster numbers of the hidden tokens, found the slow way."""
    hidden = ~keep_mask[:, mae.unit_of_token]
    return torch.stack([row.nonzero()[:, 0] for row in hidden])


def test_predictions_and_targets_are_the_hidden_tokens_in_raster_order(pixels: Tensor, keep_mask: Tensor) -> None:
    mae = small_autoencoder(target="pixels")
    output = mae(pixels, keep_mask=keep_mask)
    expected = gather_patches(pixels[:, :, ::2], 16, raster_order(mae, keep_mask), channels_last=True).flatten(0, 1)
    assert output.prediction.shape == output.target.shape == (2 * 12 * 4, 768)
    assert torch.equal(output.target, expected)
    assert torch.equal(output.loss, (output.prediction - output.target).square().mean())


@pytest.mark.parametrize("decoder", ["subset", "cross"])
def test_a_share_is_a_random_choice_of_the_hidden_tokens(decoder: str, pixels: Tensor, keep_mask: Tensor) -> None:
    mae = small_autoencoder(decoder=decoder, decoder_share=0.25, target="pixels")
    generator = torch.Generator().manual_seed(3)
    draws = mae.draw(2, generator)
    output = mae(pixels, keep_mask=keep_mask, draws=draws)
    assert draws.decoder_tokens is not None
    chosen = draws.decoder_tokens.argsort(dim=1)[:, :12].sort(dim=1).values
    index = raster_order(mae, keep_mask).gather(1, chosen)
    assert torch.equal(output.target, gather_patches(pixels[:, :, ::2], 16, index, channels_last=True).flatten(0, 1))


def test_fusion_switched_off_takes_the_last_map_alone(pixels: Tensor, keep_mask: Tensor) -> None:
    mae = small_autoencoder(multi_scale_fusion=False)
    assert len(list(mae.fusion.parameters())) == 0
    stages = mae.encoder.encode(pixels, keep_mask, keep_mask.nonzero()[:, 1].view(2, 4))
    assert mae.fusion(stages) is stages[-1].tokens


@pytest.mark.parametrize("options", [{"decoder_depth": 3}, {"decoder_embed_dim": 32}, {"mask_ratio": 0.5}])
def test_ablation_options(options: dict[str, object], pixels: Tensor) -> None:
    output = small_autoencoder(**options)(pixels)
    output.loss.backward()
    assert output.loss.isfinite()


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


def test_missing_draws_are_drawn() -> None:
    mae = create_model("mae_hiera_test_8x64", drop_path_rate=0.5)
    pixels = torch.randn(4, 3, 8, 64, 64)
    assert not torch.equal(mae(pixels).loss, mae(pixels).loss)
    assert mae(pixels, draws=Draws()).loss.isfinite()


@pytest.fixture(scope="module")
def autoencoder() -> torch.nn.Module:
    return create_model("mae_hiera_test_8x64")


def test_mask_and_ratio_that_disagree(autoencoder: Any) -> None:
    keep_mask = random_keep_mask(2, 16, 0.5)
    with pytest.raises(ValueError, match=r"keeps 8 units, mask_ratio=0.75 keeps 4 of 16.*must agree"):
        autoencoder(torch.zeros(CLIP), mask_ratio=0.75, keep_mask=keep_mask)
    assert autoencoder(torch.zeros(CLIP), keep_mask=keep_mask).loss.isfinite()


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.9, r"mask_ratio=0.9: keeps 1 of 16 mask units, at least 3 must stay visible; use at most 0.812"),
        (1.0, r"mask_ratio=1.0: must lie in \[0, 1\)"),
        (-0.1, r"mask_ratio=-0.1: must lie in \[0, 1\)"),
    ],
)
def test_wrong_ratio(autoencoder: Any, ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(torch.zeros(CLIP), mask_ratio=ratio)
    with pytest.raises(ValueError, match=message):
        create_model("mae_hiera_test_8x64", mask_ratio=ratio)


@pytest.mark.parametrize("decoder", ["full", "subset", "cross"])
def test_a_mask_that_hides_nothing_leaves_no_loss(decoder: str) -> None:
    message = "hides none of 16 mask units.*at least one must be hidden.*; use a mask_ratio of at least 0.0625"
    mae, everything = create_model("mae_hiera_test_8x64", decoder=decoder), torch.ones(2, 16, dtype=torch.bool)
    calls: list[Callable[[], Any]] = [
        lambda: mae(torch.zeros(CLIP), mask_ratio=0.0),
        lambda: mae(torch.zeros(CLIP), keep_mask=everything),
        lambda: mae(torch.zeros(CLIP), mask_ratio=0.0, keep_mask=everything),
        lambda: create_model("mae_hiera_test_8x64", mask_ratio=0.0),
        lambda: validate_keep_mask(everything, 16, some_hidden=True),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert mae(torch.randn(CLIP), mask_ratio=0.0625).loss.isfinite()


def test_a_mask_on_another_device_is_refused_by_its_ratio_unread() -> None:
    mae = create_model("mae_hiera_test_8x64").to("meta")
    pixels, everything = torch.zeros(CLIP, device="meta"), torch.ones(2, 16, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match=r"mask_ratio=0\.0: hides none of 16"):
        mae(pixels, mask_ratio=0.0, keep_mask=everything)
    assert mae(pixels, mask_ratio=0.5, keep_mask=everything).loss.shape == ()


# The same weights give the public masked autoencoder's numbers: every preset, shrunk, not in structure.


AUTOENCODERS = [
    pytest.param(name, marks=pytest.mark.slow if "huge" in name else [])
    for name in PUBLIC_PRESETS
    if name.startswith("mae_")
]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_loss_prediction_target_and_gradients(name: str) -> None:
    ours, theirs = peers(name, decoder_depth=2)
    video, keep_mask = small_pixels(name), half_mask(ours)
    with torch.no_grad():
        loss, prediction, target, _ = theirs(video, mask=keep_mask)
        output = ours(video, mask_ratio=0.5, keep_mask=keep_mask)
    assert relative_difference(output.loss, loss) < TOLERANCE
    assert relative_difference(output.prediction, prediction) < TOLERANCE
    assert relative_difference(output.target, target) < TOLERANCE
    # In float64: in float32 rounding, which differs from processor to processor, decides which of two nearly equal
    # queries max pooling takes, and the gradient goes to that one alone.
    ours, theirs, video = ours.double(), theirs.double(), video.double()
    ours(video, mask_ratio=0.5, keep_mask=keep_mask).loss.backward()
    theirs(video, mask=keep_mask)[0].backward()
    assert_same_gradients(ours, theirs)


def test_random_masks_keep_as_many_units_as_the_public_code() -> None:
    ours, theirs = peers("mae_hiera_base_16x224")
    video = small_pixels("mae_hiera_base_16x224")
    for ratio in (0.1, 0.5, 0.75):
        assert ours(video, mask_ratio=ratio).keep_mask.sum() == theirs(video, mask_ratio=ratio)[3].sum()


def test_full_size_base_video_at_the_papers_ratio() -> None:
    name = "mae_hiera_base_16x224"
    ours, theirs = peers(name, input_size=(16, 224, 224), stages=(1, 1, 1, 1), decoder_depth=1)
    video = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(3))
    output = ours(video, mask_ratio=0.9)
    assert int(output.keep_mask.sum()) == 39
    with torch.no_grad():
        loss, prediction, _, _ = theirs(video, mask=output.keep_mask)
    assert relative_difference(output.loss, loss) < TOLERANCE
    assert relative_difference(output.prediction, prediction) < TOLERANCE
