"""Pictures of what a masked autoencoder sees and predicts.

Shapes: B batch, t predicted frames, N predicted tokens, s side of a token's square in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hiera_video.augmentation.basic import denormalize_video
from hiera_video.models.config import MaskedAutoencoderConfig
from hiera_video.models.masked_autoencoder import MaeOutput, MaskedAutoencoder
from hiera_video.models.targets import VARIANCE_EPSILON, first_frames, gather_patches

HIDDEN_GREY = 0.0
_CAPTION = "original | what the encoder sees | reconstruction of the hidden patches. "
_CAPTIONS = {
    "normalized_pixels": "The model predicts normalised patches; each patch's mean and deviation are borrowed from the "
    "original, so brightness and contrast are not its own.",
    "pixels": "The model predicts the pixels themselves; nothing is borrowed from the original.",
}


class Reconstruction(NamedTuple):
    """uint8 pictures ``[B, t, H, W, 3]``, t the first frame of each token (1 for images)."""

    original: Tensor
    masked: Tensor
    """Hidden units grey."""
    reconstruction: Tensor
    """Visible patches from the original, predicted ones from the model, hidden ones without a prediction grey."""


def reconstruction_caption(config: MaskedAutoencoderConfig) -> str:
    """What a picture of `reconstruct` shows, from left to right, and what it borrows."""
    return _CAPTION + _CAPTIONS[config.target]


@torch.no_grad()
def reconstruct(mae: MaskedAutoencoder, pixels: Tensor, output: MaeOutput) -> Reconstruction:
    """Pictures from the input ``[B, 3, (T), H, W]`` and what `mae` made of it.

    With normalised-pixel targets the prediction has no brightness or contrast of its own: each patch's mean and
    deviation are **borrowed from the original** (`reconstruction_caption` says so).

    Raises:
        ValueError: a model that does not predict pixels, or a decoder that predicts a share of the tokens.
    """
    config = mae.config
    if config.target == "hog" or config.decoder != "full":
        raise ValueError(
            f"target={config.target}, decoder={config.decoder}: only pixel targets of the full decoder give a picture; "
            "use target=normalized_pixels and decoder=full"
        )
    frames = first_frames(config, pixels).float()
    hidden = ~output.keep_mask[:, mae.unit_of_token]  # [B, tokens], raster
    hidden_index = hidden.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    hidden_index = hidden_index[:, : output.prediction.shape[0] // pixels.shape[0]]
    patches = output.prediction.float().reshape(*hidden_index.shape, -1)
    if config.target == "normalized_pixels":
        patches = _borrow_contrast(config, frames, hidden_index, patches)
    masked = _scatter(config, frames, hidden_index, torch.full_like(patches, HIDDEN_GREY))
    restored = _scatter(config, frames, hidden_index, patches)
    return Reconstruction(*(denormalize_video(picture) for picture in (frames, masked, restored)))


def _borrow_contrast(config: MaskedAutoencoderConfig, frames: Tensor, index: Tensor, patches: Tensor) -> Tensor:
    original = gather_patches(frames, config.prediction_pixels, index, channels_last=_is_video(config))
    variance, mean = torch.var_mean(original, dim=-1, keepdim=True)
    return patches * (variance + VARIANCE_EPSILON).sqrt() + mean


def _scatter(config: MaskedAutoencoderConfig, frames: Tensor, index: Tensor, patches: Tensor) -> Tensor:
    """A copy of ``[B, 3, t, H, W]`` with the squares at raster numbers ``[B, N]`` replaced."""
    side, channels = config.prediction_pixels, frames.shape[1]
    layout = (side, side, channels) if _is_video(config) else (channels, side, side)
    squares = patches.reshape(*index.shape, *layout)
    squares = squares.movedim(-1, 2) if _is_video(config) else squares  # [B, N, 3, s, s]
    canvas = frames.clone()
    grid = canvas.unfold(3, side, side).unfold(4, side, side).movedim(1, 4)  # [B, t, h, w, 3, s, s], a view
    height, width = grid.shape[2:4]
    rows = torch.arange(frames.shape[0], device=frames.device)[:, None]
    grid[rows, index // (height * width), index // width % height, index % width] = squares
    return canvas


def _is_video(config: MaskedAutoencoderConfig) -> bool:
    return len(config.input_size) == 3
