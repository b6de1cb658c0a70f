"""Pictures that a person looks at after training."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from hiera_video.analysis.reconstruct import reconstruct, reconstruction_caption
from hiera_video.augmentation.basic import normalize_video
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.random_draws import random_keep_mask

FRAMES_SHOWN = 4


@torch.no_grad()
def reconstruction_picture(model: MaskedAutoencoder, frames: Tensor, path: Path, *, mask_ratio: float) -> None:
    """Originals, masked inputs and reconstructions of some clips, as one PNG.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``, one row of the picture a clip.
        path: where the PNG goes.
        mask_ratio: share of hidden units; the masks are the same every time.
    """
    pixels = normalize_video(frames)
    masks = random_keep_mask(
        len(frames), model.num_mask_units, mask_ratio, seeds=range(len(frames)), device=frames.device
    )
    output = model(pixels, keep_mask=masks, mask_ratio=mask_ratio)
    pictures = reconstruct(model, pixels, output)
    rows = [
        np.concatenate(
            [_strip(part[clip]) for part in (pictures.original, pictures.masked, pictures.reconstruction)], 1
        )
        for clip in range(len(frames))
    ]
    caption = f"mask ratio {mask_ratio}, loss {float(output.loss):.3f}. {reconstruction_caption(model.config)}"
    _save(np.concatenate(rows), caption, path)


def curve_picture(series: Sequence[tuple[str, Sequence[float]]], path: Path, *, x_label: str = "step") -> None:
    """One panel a series, as one PNG."""
    figure = Figure(figsize=(5 * len(series), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(series))), series, strict=True):
        axes.plot(range(1, len(values) + 1), values, linewidth=1)
        axes.set_xlabel(x_label)
        axes.set_title(name)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _strip(frames: Tensor) -> np.ndarray:
    """Some frames of ``[t, H, W, 3]`` side by side, with a gap at the end."""
    chosen = frames[:: max(1, len(frames) // FRAMES_SHOWN)][:FRAMES_SHOWN].cpu().numpy()
    strip = np.concatenate(list(chosen), axis=1)
    return np.pad(strip, ((0, 4), (0, 8), (0, 0)), constant_values=255)


def _save(image: np.ndarray, caption: str, path: Path) -> None:
    height, width = image.shape[:2]
    figure = Figure(figsize=(width / 110, height / 110 + 0.9), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0.9 / figure.get_figheight(), 1, 1 - 0.9 / figure.get_figheight()))
    axes.imshow(image)
    axes.axis("off")
    figure.text(0.01, 0.02, "\n".join(textwrap.wrap(caption, int(width / 6.5))), fontsize=8, va="bottom")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
