"""The picture of a model's reconstructions: a row per clip, the same every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch

from hiera_video.models.presets import create_model
from jobs.reports.reconstruction import reconstruction_picture


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
    assert picture.shape[0] >= 2 * 64
    assert picture.shape[1] >= 3 * 4 * 64  # original, masked, reconstruction, each the first frames of four tokens
