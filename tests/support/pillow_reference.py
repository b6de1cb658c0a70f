"""Pillow's operations, by which timm's RandAugment is defined, and clips to try them on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Colour = tuple[int, int, int]
Picture = Callable[[Image.Image, float, Colour], Image.Image]
HEIGHT, WIDTH, GREY = 24, 32, (128, 128, 128)


def _affine(picture: Image.Image, fill: Colour, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(picture: Image.Image, added: float, _: Colour) -> Image.Image:
    return picture.point([min(255, value + int(added)) if value < 128 else value for value in range(256)] * 3)


PILLOW: dict[str, Picture] = {
    "AutoContrast": lambda picture, *_: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, *_: ImageOps.equalize(picture),
    "Invert": lambda picture, *_: ImageOps.invert(picture),
    "Rotate": lambda picture, x, fill: picture.rotate(x, Image.Resampling.BICUBIC, fillcolor=fill),
    "PosterizeIncreasing": lambda picture, x, _: ImageOps.posterize(picture, int(x)),
    "SolarizeIncreasing": lambda picture, x, _: ImageOps.solarize(picture, int(x)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": lambda picture, x, _: ImageEnhance.Color(picture).enhance(x),
    "ContrastIncreasing": lambda picture, x, _: ImageEnhance.Contrast(picture).enhance(x),
    "BrightnessIncreasing": lambda picture, x, _: ImageEnhance.Brightness(picture).enhance(x),
    "SharpnessIncreasing": lambda picture, x, _: ImageEnhance.Sharpness(picture).enhance(x),
    "ShearX": lambda picture, x, fill: _affine(picture, fill, 1, x, 0, 0, 1, 0),
    "ShearY": lambda picture, x, fill: _affine(picture, fill, 1, 0, 0, x, 1, 0),
    "TranslateXRel": lambda picture, x, fill: _affine(picture, fill, 1, 0, x * WIDTH, 0, 1, 0),
    "TranslateYRel": lambda picture, x, fill: _affine(picture, fill, 1, 0, 0, 0, 1, x * HEIGHT),
}
MOVES = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def clips(smooth: bool = False) -> Tensor:
    """Three clips of two frames; the last frame of the last clip has a channel of one value."""
    generator = torch.Generator().manual_seed(0)
    small = (
        torch.rand(6, 3, 5, 6, generator=generator) if smooth else torch.rand(6, 3, HEIGHT, WIDTH, generator=generator)
    )
    pictures = torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bilinear") * 200 + 20
    frames = pictures.to(torch.uint8).permute(0, 2, 3, 1).reshape(3, 2, HEIGHT, WIDTH, 3).contiguous()
    frames[2, 1, ..., 0] = 90
    return frames


def by_pillow(name: str, frames: Tensor, arguments: tuple[float, ...], fill: Colour = GREY) -> Tensor:
    """An operation on uint8 ``[N, T, H, W, 3]``, with an argument for each clip."""
    changed = [
        [np.asarray(PILLOW[name](Image.fromarray(frame.numpy()), argument, fill)) for frame in clip]
        for clip, argument in zip(frames, arguments, strict=True)
    ]
    return torch.from_numpy(np.array(changed))
