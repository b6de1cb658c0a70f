"""The demo's pictures: labelled, different, the same for the same seed, tested on other parts of the photographs."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.synthetic.scene_images import REGIONS, SCENE_CLASSES, SIDE, SMALLEST, cut_scene_images


def test_classes_in_turn_and_a_list_of_labels_and_splits(tmp_path: Path) -> None:
    images = cut_scene_images(tmp_path, 49, seed=0, annotations="list.csv")
    assert Counter(image.label for image in images) == Counter({**dict.fromkeys(SCENE_CLASSES, 8), "leaves": 9})
    assert Counter(image.split for image in images if image.label == "sky") == {"train": 6, "val": 2}
    assert len({image.path.read_bytes() for image in images}) == 49
    with (tmp_path / "list.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        (f"{image.path.parent.name}/{image.path.name}", image.label, image.split) for image in images
    ]
    assert images[0].path.parent.name == images[0].label


def test_pictures_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (
        cut_scene_images(tmp_path / str(number), 1, seed=seed)[0].path.read_bytes()
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("label", SCENE_CLASSES)
def test_training_and_test_pieces_share_no_pixel(label: str) -> None:
    trained, tested = REGIONS[label]
    assert trained.photograph == tested.photograph
    assert trained.right <= tested.left or tested.right <= trained.left
    for region in (trained, tested):
        assert min(region.right - region.left, region.bottom - region.top) >= SMALLEST


def test_pictures_are_colour_and_show_something(tmp_path: Path) -> None:
    for image in cut_scene_images(tmp_path, len(SCENE_CLASSES), seed=3):
        with Image.open(image.path) as file:
            pixels = np.asarray(file)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert np.ptp(pixels) > 20
