"""What a masked autoencoder saw and what it made of it, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiera_video.analysis.reconstruct import reconstruct, reconstruction_caption
from hiera_video.augmentation.basic import model_input
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.random_draws import random_keep_mask
from jobs.reports.plots import captioned_image

FRAMES_SHOWN = 4
CELL_PIXELS = 192  # least side of a frame in the picture
IMAGES_ABREAST = 8
ROWS = ("original", "masked", "reconstruction")  # of each clip, or of some images side by side


@torch.no_grad()
def reconstruction_picture(model: MaskedAutoencoder, frames: Tensor, path: Path, *, mask_ratio: float) -> None:
    """Write originals, masked inputs and reconstructions of some clips as one PNG.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``, three rows of the picture per clip (`ROWS`), or per `IMAGES_ABREAST` images.
        path: the PNG; its folder is created.
        mask_ratio: share of hidden units; the masks are the same every time.
    """
    pixels = model_input(frames, model.config)
    masks = random_keep_mask(
        len(frames), model.num_mask_units, mask_ratio, seeds=range(len(frames)), device=frames.device
    )
    output = model(pixels, keep_mask=masks, mask_ratio=mask_ratio)
    pictures = reconstruct(model, pixels, output)
    parts = (pictures.original, pictures.masked, pictures.reconstruction)
    abreast = 1 if model.config.is_video else min(IMAGES_ABREAST, len(frames))
    starts = range(0, len(frames), abreast)
    rows = [_row(part[start : start + abreast], abreast) for start in starts for part in parts]
    caption = f"mask ratio {mask_ratio}, loss {float(output.loss):.3f}. {reconstruction_caption(model.config)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(captioned_image(np.concatenate(rows), caption, ROWS * len(starts)))


def _row(clips: Tensor, abreast: int) -> npt.NDArray[np.uint8]:
    """The strips of some clips ``[B, t, H, W, 3]`` side by side; white where the last row has fewer."""
    strips = [_strip(clip) for clip in clips]
    if abreast == 1:
        return strips[0]
    blank = np.full_like(strips[0], 255)
    return np.concatenate([np.pad(strip, ((0, 0), (0, 4), (0, 0)), constant_values=255)
                           for strip in (*strips, *[blank] * (abreast - len(strips)))], axis=1)  # fmt: skip


def _strip(frames: Tensor) -> npt.NDArray[np.uint8]:
    """Some frames of ``[t, H, W, 3]`` side by side, enlarged, with a gap below."""
    chosen = frames[:: max(1, len(frames) // FRAMES_SHOWN)][:FRAMES_SHOWN].cpu().numpy()
    scale = max(1, -(-CELL_PIXELS // chosen.shape[2]))
    larger = chosen.repeat(scale, axis=1).repeat(scale, axis=2)  # squares stay squares
    return np.pad(np.concatenate(list(larger), axis=1), ((0, 4), (0, 0), (0, 0)), constant_values=255)
