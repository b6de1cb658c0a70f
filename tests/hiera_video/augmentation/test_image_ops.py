"""Every operation against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hiera_video.augmentation.image_ops import move
from hiera_video.augmentation.rand_augment import (
    OPERATIONS,
)
from tests.support.pillow_reference import GREY, HEIGHT, MOVES, WIDTH, by_pillow, clips

ARGUMENTS = {
    "Rotate": (-21.0, 4.5, 30.0),
    "PosterizeIncreasing": (1.0, 2.0, 4.0),
    "SolarizeIncreasing": (0.0, 77.0, 256.0),
    "SolarizeAdd": (0.0, 77.0, 110.0),
    **{f"{name}Increasing": (0.1, 0.37, 1.63) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
    **dict.fromkeys(("ShearX", "ShearY"), (-0.21, 0.07, 0.3)),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), (-0.315, 0.1, 0.45)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows(name: str) -> None:
    arguments = ARGUMENTS.get(name, (0.0, 0.0, 0.0))
    frames = clips(smooth=name in MOVES)
    ours = OPERATIONS[name].apply(frames, torch.tensor(arguments))
    theirs = by_pillow(name, frames, arguments)
    assert ours.dtype == torch.uint8
    assert not torch.equal(ours, frames)
    difference = (ours.int() - theirs.int()).abs()
    if name in MOVES:  # the bicubic kernels differ; what is uncovered must not
        assert torch.equal((theirs == 128).all(-1), (ours == 128).all(-1)), "another part is uncovered"
        assert difference.float().mean() < 1.0
        assert difference.max() <= 16
    else:
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01


def test_moves_are_pillows_with_the_same_kernel() -> None:
    frames, matrix = clips(), (0.9, 0.2, 1.3, -0.15, 1.05, -2.2)
    ours = move(frames, torch.tensor([matrix] * 3), "bilinear")
    for clip, moved in zip(frames.flatten(0, 1), ours.flatten(0, 1), strict=True):
        theirs = Image.fromarray(clip.numpy()).transform(
            (WIDTH, HEIGHT), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY
        )
        assert (torch.from_numpy(np.array(theirs)).int() - moved.int()).abs().max() <= 1


@pytest.mark.parametrize("name", MOVES)
def test_moves_leave_the_colour_that_is_asked_for(name: str) -> None:
    fill, arguments = (124, 116, 104), ARGUMENTS[name]
    frames = clips(smooth=True)
    ours = OPERATIONS[name].apply(frames, torch.tensor(arguments), fill=fill)
    theirs = by_pillow(name, frames, arguments, fill)
    uncovered = (theirs == torch.tensor(fill)).all(-1)
    assert uncovered.any()
    assert torch.equal(uncovered, (ours == torch.tensor(fill)).all(-1))


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_no_operation_mirrors(name: str, direction: float) -> None:
    """A ramp that rises to the right still does so after every move: left and right stay what they are."""
    ramp = torch.linspace(30, 220, WIDTH).to(torch.uint8).view(1, 1, 1, WIDTH, 1).expand(1, 1, HEIGHT, WIDTH, 3)
    moved = OPERATIONS[name].apply(ramp.contiguous(), OPERATIONS[name].argument(*strongest(direction)).float())
    middle = moved[0, 0, HEIGHT // 2, WIDTH // 2 - 1 : WIDTH // 2 + 2, 0].int()
    assert (middle.diff() >= 0).all()
    assert middle[-1] > middle[0]


def strongest(direction: float) -> tuple[Tensor, Tensor]:
    return torch.ones(1, dtype=torch.float64), torch.full((1,), direction, dtype=torch.float64)
