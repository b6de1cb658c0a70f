"""What the hidden tokens predict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiera_video.models.targets import gather_patches, normalize_patches
from tests.support.small_models import small_autoencoder


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))


def test_hog_target_has_108_values_a_patch(pixels: Tensor) -> None:
    output = small_autoencoder(target="hog")(pixels)
    assert output.target.shape[1] == 108
    assert output.target.min() >= 0
    # Four cells of three channels, each of norm 1.
    torch.testing.assert_close(output.target.square().sum(dim=1), torch.full((96,), 12.0))
    output.loss.backward()


@pytest.mark.parametrize("channels_last", [False, True])
def test_patches_are_squares_of_the_frames_in_raster_order(channels_last: bool) -> None:
    frames = torch.arange(2 * 3 * 2 * 4 * 6).view(2, 3, 2, 4, 6)
    patches = gather_patches(frames, 2, torch.arange(12).expand(2, 12), channels_last=channels_last)
    for token in range(12):
        time, row, column = token // 6, token // 3 % 2, token % 3
        square = frames[1, :, time, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(patches[1, token], (square.movedim(0, -1) if channels_last else square).flatten())


def test_normalised_patches_have_mean_zero_and_deviation_one() -> None:
    patches = normalize_patches(torch.randn(2, 5, 768) * 3 + 7)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.std(-1), torch.ones(2, 5))
