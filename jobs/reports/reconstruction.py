"""What a masked autoencoder saw and what it made of it, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiera_video.analysis.reconstruct import reconstruct, reconstruction_caption
from hiera_video.augmentation.basic import normalize_video
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.random_draws import random_keep_mask
from jobs.reports.plots import captioned_image

FRAMES_SHOWN = 4


@torch.no_grad()
def reconstruction_picture(model: MaskedAutoencoder, frames: Tensor, path: Path, *, mask_ratio: float) -> None:
    """Write originals, masked inputs and reconstructions of some clips as one PNG.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``, one row of the picture per clip.
        path: the PNG; its folder is created.
        mask_ratio: share of hidden units; the masks are the same every time.
    """
    pixels = normalize_video(frames)
    masks = random_keep_mask(
        len(frames), model.num_mask_units, mask_ratio, seeds=range(len(frames)), device=frames.device
    )
    output = model(pixels, keep_mask=masks, mask_ratio=mask_ratio)
    pictures = reconstruct(model, pixels, output)
    parts = (pictures.original, pictures.masked, pictures.reconstruction)
    rows = [np.concatenate([_strip(part[clip]) for part in parts], axis=1) for clip in range(len(frames))]
    caption = f"mask ratio {mask_ratio}, loss {float(output.loss):.3f}. {reconstruction_caption(model.config)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(captioned_image(np.concatenate(rows), caption))


def _strip(frames: Tensor) -> npt.NDArray[np.uint8]:
    """Some frames of ``[t, H, W, 3]`` side by side, with a gap at the end."""
    chosen = frames[:: max(1, len(frames) // FRAMES_SHOWN)][:FRAMES_SHOWN].cpu().numpy()
    strip = np.concatenate(list(chosen), axis=1)
    return np.pad(strip, ((0, 4), (0, 8), (0, 0)), constant_values=255)
