"""Photographs and drawn pictures in many formats, and what Pillow alone makes of them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.sampling import CropBox


def photograph(name: str = "china.jpg") -> Path:
    """A real photograph, 640 × 427: scikit-learn carries `china.jpg` and `flower.jpg`."""
    return Path(str(resources.files("sklearn") / "datasets" / "images" / name))


def drawn(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """Smooth colours with some detail, another picture for every seed."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    detail = draw.integers(-8, 9, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + detail).clip(0, 255).astype(np.uint8))


def write_drawn(path: Path, seed: int = 0, size: tuple[int, int] = (60, 40)) -> Path:
    """A drawn picture as a file, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(*size, seed=seed).save(path)
    return path


def cropped(picture: Image.Image, crop: CropBox, side: int) -> np.ndarray:
    """torchvision's ``resized_crop``, bicubic with antialiasing."""
    top, left, height, width = crop
    part = picture.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((side, side), Image.Resampling.BICUBIC))


def centred(picture: Image.Image, short_side: int, side: int) -> np.ndarray:
    """torchvision's ``Resize(short_side)`` and ``CenterCrop(side)``, as its source computes them."""
    width, height = picture.size
    if width <= height:
        size = (short_side, int(short_side * height / width))
    else:
        size = (int(short_side * width / height), short_side)
    whole = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    return np.asarray(whole.crop((left, top, left + side, top + side)))
