"""The straightforward loop over public models: a picture at a time, the published preprocessing, nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.support.pictures import centred

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.no_grad()
def loop(model: Callable[[Tensor], Tensor], paths: Sequence[Path], side: int = 224, short_side: int = 256) -> Tensor:
    """Logits of each picture: short side resized bicubically, centre, ImageNet's mean and deviation. [N, classes]"""
    logits = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = torch.from_numpy(centred(picture.convert("RGB"), short_side, side).astype(np.float32) / 255)
        pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
        logits.append(model(pixels.permute(2, 0, 1)[None]))
    return torch.cat(logits)
