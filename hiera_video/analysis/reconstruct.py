"""Images of what a masked autoencoder sees and predicts.

Shapes: B batch, T frames, H height, W width, t predicted frames, N predicted tokens, P values of one token, s side of
a token's square in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hiera_video.augmentation.basic import denormalize_video
from hiera_video.models.config import MaskedAutoencoderConfig
from hiera_video.models.masked_autoencoder import MaeOutput, MaskedAutoencoder
from hiera_video.models.targets import first_frames, gather_patches, patch_coordinates, patch_grid, patch_statistics

HIDDEN_GREY = 0.0
_CAPTION = "Rows: original, what the encoder sees (masked), reconstruction of the hidden patches. "
_CAPTIONS = {
    "normalized_pixels": "The model predicts normalised patches; each patch's mean and deviation are borrowed from the "
    "original, so brightness and contrast are not its own.",
    "pixels": "The model predicts the pixels themselves; nothing is borrowed from the original.",
}


class Reconstruction(NamedTuple):
    """uint8 images ``[B, t, H, W, 3]``, t the first frame of each token (1 for images)."""

    original: Tensor
    masked: Tensor
    """Hidden units grey."""
    reconstruction: Tensor
    """Visible patches from the original, predicted ones from the model, hidden ones without a prediction grey."""


def reconstruction_caption(config: MaskedAutoencoderConfig) -> str:
    """A caption for the images of `reconstruct`, and what they borrow from the original."""
    return _CAPTION + _CAPTIONS[config.target]


@torch.no_grad()
def reconstruct(mae: MaskedAutoencoder, pixels: Tensor, output: MaeOutput) -> Reconstruction:
    """Images from the input ``[B, 3, (T), H, W]`` and the output of `mae` for it.

    With normalised-pixel targets the prediction has no brightness or contrast of its own: each patch's mean and
    deviation are **borrowed from the original** (`reconstruction_caption` says so).

    Raises:
        ValueError: a model that does not predict pixels, or a decoder that predicts a share of the tokens.
    """
    config = mae.config
    if config.target == "hog" or config.decoder != "full":
        raise ValueError(
            f"target={config.target}, decoder={config.decoder}: an image needs pixel targets and the full decoder; "
            "use target=normalized_pixels and decoder=full"
        )
    frames = first_frames(config, pixels).float()
    hidden = ~output.keep_mask[:, mae.unit_of_token]  # [B, tokens], raster
    hidden_index = hidden.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    hidden_index = hidden_index[:, : output.prediction.shape[0] // pixels.shape[0]]
    patches = output.prediction.float().reshape(*hidden_index.shape, -1)
    if config.target == "normalized_pixels":
        original = gather_patches(frames, config.prediction_pixels, hidden_index, channels_last=config.is_video)
        mean, deviation = patch_statistics(original)
        patches = patches * deviation + mean
    masked = _scatter(config, frames, hidden_index, torch.full_like(patches, HIDDEN_GREY))
    restored = _scatter(config, frames, hidden_index, patches)
    colours = config.pixel_mean, config.pixel_std
    return Reconstruction(*(denormalize_video(images, *colours) for images in (frames, masked, restored)))


def _scatter(config: MaskedAutoencoderConfig, frames: Tensor, index: Tensor, patches: Tensor) -> Tensor:
    """A copy of ``[B, 3, t, H, W]`` with the squares at raster numbers ``[B, N]`` replaced."""
    side, channels = config.prediction_pixels, frames.shape[1]
    layout = (side, side, channels) if config.is_video else (channels, side, side)
    squares = patches.reshape(*index.shape, *layout)
    canvas = frames.clone()
    grid = patch_grid(canvas, side)
    grid[patch_coordinates(grid, index)] = squares.movedim(-1, 2) if config.is_video else squares  # [B, N, 3, s, s]
    return canvas
