"""Labelled pictures for the demo: pieces of the two photographs that scikit-learn carries (which MLflow installs).

A label is what the piece shows. Pieces to train on and pieces to test with come from different parts of a photograph.
"""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]  # [H, W, 3], blue first as OpenCV has it

SIDE = 160
JPEG_QUALITY = 92
SMALLEST, LARGEST = 56, 120  # side of a piece in the photograph, pixels
TESTED = 4  # every fourth picture of a class


class Region(NamedTuple):
    """A part of a photograph that shows one thing, in pixels."""

    photograph: str
    left: int
    top: int
    right: int
    bottom: int


# By label: where pieces to train on lie, and where those to test with.
REGIONS: dict[str, tuple[Region, Region]] = {
    "leaves": (Region("flower.jpg", 0, 40, 160, 340), Region("flower.jpg", 470, 60, 640, 360)),
    "pagoda": (Region("china.jpg", 90, 70, 205, 330), Region("china.jpg", 205, 70, 325, 330)),
    "petals": (Region("flower.jpg", 190, 120, 312, 325), Region("flower.jpg", 312, 120, 425, 325)),
    "sky": (Region("china.jpg", 330, 0, 490, 150), Region("china.jpg", 490, 0, 640, 130)),
    "trees": (Region("china.jpg", 350, 325, 560, 427), Region("china.jpg", 560, 150, 640, 420)),
    "water": (Region("china.jpg", 352, 215, 450, 290), Region("china.jpg", 450, 212, 545, 280)),
}
SCENE_CLASSES = tuple(REGIONS)


class SceneImage(NamedTuple):
    """A picture, its label and its split."""

    path: Path
    label: str
    split: str


def cut_scene_images(folder: Path, count: int, seed: int, annotations: str | None = None) -> list[SceneImage]:
    """Write ``count`` JPEG files, the classes in turn, below ``folder``; a picture depends on seed and number alone.

    Args:
        annotations: name of a CSV file (path, label, split), written last.
    """
    photographs = {name: _photograph(name) for name in ("china.jpg", "flower.jpg")}
    images = []
    for number in range(count):
        label = SCENE_CLASSES[number % len(SCENE_CLASSES)]
        tested = number // len(SCENE_CLASSES) % TESTED == 0
        region = REGIONS[label][tested]
        path = folder / label / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        piece = cut_piece(photographs[region.photograph], region, np.random.default_rng([seed, number]))
        _, encoded = cv2.imencode(".jpg", piece, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        path.write_bytes(encoded.tobytes())
        images.append(SceneImage(path, label, "val" if tested else "train"))
    if annotations is not None:
        with (folder / annotations).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "split"])
            rows.writerows((str(image.path.relative_to(folder)), image.label, image.split) for image in images)
    return images


def cut_piece(photograph: Picture, region: Region, draw: np.random.Generator) -> Picture:
    """A square piece of a region, ``SIDE`` × ``SIDE``: mirrored or not, a little darker or not."""
    _, left, top, right, bottom = region
    side = int(draw.integers(SMALLEST, min(LARGEST, right - left, bottom - top) + 1))
    x, y = int(draw.integers(left, right - side + 1)), int(draw.integers(top, bottom - side + 1))
    piece = cv2.resize(photograph[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if draw.random() < 0.5:
        piece = piece[:, ::-1]
    return (piece * draw.uniform(0.7, 1.0)).astype(np.uint8)


def _photograph(name: str) -> Picture:
    content = (resources.files("sklearn") / "datasets" / "images" / name).read_bytes()
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture.astype(np.uint8, copy=False)
