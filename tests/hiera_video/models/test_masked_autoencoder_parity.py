"""The same weights give the public masked autoencoder's numbers: every preset, shrunk, not in structure."""

from __future__ import annotations

import pytest
import torch

from tests.support.official import (
    PUBLIC_PRESETS,
    TOLERANCE,
    assert_same_gradients,
    half_mask,
    peers,
    relative_difference,
    small_pixels,
)

AUTOENCODERS = [name for name in PUBLIC_PRESETS if name.startswith("mae_")]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_loss_prediction_target_and_gradients(name: str) -> None:
    ours, theirs = peers(name, decoder_depth=2)
    video, keep_mask = small_pixels(name), half_mask(ours)
    loss, prediction, target, _ = theirs(video, mask=keep_mask)
    output = ours(video, mask_ratio=0.5, keep_mask=keep_mask)
    assert relative_difference(output.loss, loss) < TOLERANCE
    assert relative_difference(output.prediction, prediction) < TOLERANCE
    assert relative_difference(output.target, target) < TOLERANCE
    output.loss.backward()
    loss.backward()
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
