"""The images of what a masked autoencoder sees and predicts."""

from __future__ import annotations

import pytest
import torch

from hiera_video.analysis.reconstruct import reconstruct
from hiera_video.augmentation.basic import denormalize_video
from hiera_video.models.presets import create_model

CLIP = (2, 3, 8, 64, 64)


@pytest.mark.parametrize("target", ["normalized_pixels", "pixels"])
@pytest.mark.parametrize(("name", "size"), [("mae_hiera_test_8x64", (8, 64, 64)), ("mae_hiera_tiny_224", (64, 96))])
def test_images_of_a_perfect_prediction_show_the_original(name: str, size: tuple[int, ...], target: str) -> None:
    mae = create_model(name, input_size=size, target=target, mask_ratio=0.5, stages=(1, 1, 1, 1), decoder_depth=1)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    output = mae(pixels)
    images = reconstruct(mae, pixels, output._replace(prediction=output.target))
    colours = mae.config.pixel_mean, mae.config.pixel_std
    original = denormalize_video(pixels[:, :, ::2] if len(size) == 3 else pixels.unsqueeze(2), *colours)
    assert torch.equal(images.original, original)
    assert (images.reconstruction.int() - original.int()).abs().max() <= 1
    grey = (images.masked == denormalize_video(torch.zeros(1, 3, 1, 1, 1), *colours)).all(dim=-1)
    hidden_share = (~output.keep_mask).float().mean()
    assert grey.float().mean() == pytest.approx(float(hidden_share), abs=0.01)


def test_targets_and_decoders_without_images_are_refused() -> None:
    pixels = torch.randn(CLIP)
    for overrides in ({"target": "hog"}, {"decoder": "cross"}):
        mae = create_model("mae_hiera_test_8x64", **overrides)
        with pytest.raises(ValueError, match=r"an image needs pixel targets and the full decoder; use target"):
            reconstruct(mae, pixels, mae(pixels))
