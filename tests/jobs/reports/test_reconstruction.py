"""The picture of a model's reconstructions: a row per clip, the same every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch

from hiera_video.models.presets import create_model
from jobs.reports.reconstruction import CELL_PIXELS, IMAGES_ABREAST, reconstruction_picture


def test_a_row_per_clip_under_the_same_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("mae_hiera_test_8x64").eval()
    frames = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    paths = [tmp_path / "new" / f"{number}.png" for number in range(2)]
    for path in paths:
        reconstruction_picture(model, frames, path, mask_ratio=0.6)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    picture = cv2.imread(str(paths[0]))
    assert picture is not None
    assert picture.shape[0] >= 2 * 3 * CELL_PIXELS  # original, masked, reconstruction of both clips
    assert picture.shape[1] == 4 * CELL_PIXELS  # the first frames of four tokens


def test_images_stand_side_by_side(tmp_path: Path) -> None:
    """A column of single images would be a strip of thousands of pixels."""
    model = create_model("mae_hiera_test_96").eval()
    for count, rows in ((3, 1), (IMAGES_ABREAST + 1, 2)):
        images = torch.randint(0, 256, (count, 1, 96, 96, 3), dtype=torch.uint8)
        reconstruction_picture(model, images, tmp_path / "images.png", mask_ratio=0.6)
        picture = cv2.imread(str(tmp_path / "images.png"))
        assert picture is not None
        assert picture.shape[1] == min(count, IMAGES_ABREAST) * (CELL_PIXELS + 4)
        assert 3 * rows * CELL_PIXELS <= picture.shape[0] < 3 * (rows + 1) * CELL_PIXELS
