"""RandAugment: every operation against Pillow, and what is drawn against timm's definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from hiera_video.augmentation.image_ops import move
from hiera_video.augmentation.rand_augment import (
    DRAWS_PER_OPERATION,
    OPERATIONS,
    RandAugment,
    operation_draws,
    parse_rand_augment,
    rand_augment,
)
from hiera_video.models.random_draws import sample_uniforms

Picture = Callable[[Image.Image, float], Image.Image]
HEIGHT, WIDTH, GREY = 24, 32, (128, 128, 128)


def _affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY
    )


def _solarize_add(picture: Image.Image, added: float) -> Image.Image:
    return picture.point([min(255, value + int(added)) if value < 128 else value for value in range(256)] * 3)


PILLOW: dict[str, Picture] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Invert": lambda picture, _: ImageOps.invert(picture),
    "Rotate": lambda picture, x: picture.rotate(x, Image.Resampling.BICUBIC, fillcolor=GREY),
    "PosterizeIncreasing": lambda picture, x: ImageOps.posterize(picture, int(x)),
    "SolarizeIncreasing": lambda picture, x: ImageOps.solarize(picture, int(x)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": lambda picture, x: ImageEnhance.Color(picture).enhance(x),
    "ContrastIncreasing": lambda picture, x: ImageEnhance.Contrast(picture).enhance(x),
    "BrightnessIncreasing": lambda picture, x: ImageEnhance.Brightness(picture).enhance(x),
    "SharpnessIncreasing": lambda picture, x: ImageEnhance.Sharpness(picture).enhance(x),
    "ShearX": lambda picture, x: _affine(1, x, 0, 0, 1, 0)(picture),
    "ShearY": lambda picture, x: _affine(1, 0, 0, x, 1, 0)(picture),
    "TranslateXRel": lambda picture, x: _affine(1, 0, x * WIDTH, 0, 1, 0)(picture),
    "TranslateYRel": lambda picture, x: _affine(1, 0, 0, 0, 1, x * HEIGHT)(picture),
}
ARGUMENTS = {
    "Rotate": (-21.0, 4.5, 30.0),
    "PosterizeIncreasing": (1.0, 2.0, 4.0),
    "SolarizeIncreasing": (0.0, 77.0, 256.0),
    "SolarizeAdd": (0.0, 77.0, 110.0),
    **{f"{name}Increasing": (0.1, 0.37, 1.63) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
    **dict.fromkeys(("ShearX", "ShearY"), (-0.21, 0.07, 0.3)),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), (-0.315, 0.1, 0.45)),
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


def by_pillow(name: str, frames: Tensor, arguments: tuple[float, ...]) -> Tensor:
    changed = [
        [np.asarray(PILLOW[name](Image.fromarray(frame.numpy()), argument)) for frame in clip]
        for clip, argument in zip(frames, arguments, strict=True)
    ]
    return torch.from_numpy(np.array(changed))


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


@pytest.mark.parametrize(
    ("name", "share", "direction", "expected"),
    [
        ("Rotate", 0.7, -1.0, -21.0),
        ("PosterizeIncreasing", 0.7, 1.0, 2.0),
        ("PosterizeIncreasing", 0.75, 1.0, 1.0),
        ("SolarizeIncreasing", 0.7, 1.0, 77.0),
        ("SolarizeAdd", 0.7, 1.0, 77.0),
        ("ColorIncreasing", 0.7, 1.0, 1.63),
        ("ContrastIncreasing", 0.7, -1.0, 0.37),
        ("BrightnessIncreasing", 1.0, -1.0, 0.1),
        ("SharpnessIncreasing", 0.0, 1.0, 1.0),
        ("ShearX", 0.7, -1.0, -0.21),
        ("ShearY", 0.7, 1.0, 0.21),
        ("TranslateXRel", 0.7, 1.0, 0.315),
        ("TranslateYRel", 0.7, -1.0, -0.315),
    ],
)
def test_arguments_are_timms(name: str, share: float, direction: float, expected: float) -> None:
    """Computed by hand from timm's ranges: 30 degrees, 4 bits, 256, 110, 1 ± 0.9, 0.3, 0.45."""
    argument = OPERATIONS[name].argument(*(torch.tensor([value], dtype=torch.float64) for value in (share, direction)))
    assert float(argument[0]) == pytest.approx(expected)


def test_the_papers_policy_is_read() -> None:
    assert parse_rand_augment("rand-m7-mstd0.5-inc1") == RandAugment(7.0, 0.5, 2, 0.5)
    assert parse_rand_augment("rand-m9-n3-inc1-p0.7") == RandAugment(9.0, 0.0, 3, 0.7)


@pytest.mark.parametrize("text", ["rand-m7-mstd0.5", "rand-m7-inc0", "augmix-m7-inc1", "rand-w3-inc1", "rand-m11-inc1"])
def test_other_policies_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_rand_augment(text)


def test_draws_have_the_stated_distributions() -> None:
    policy = RandAugment(7.0, 0.5)
    noise = torch.rand(30_000, DRAWS_PER_OPERATION, generator=torch.Generator().manual_seed(1))
    draws = operation_draws(policy, noise)
    counts = torch.bincount(draws.number, minlength=15)
    assert len(counts) == 15
    assert (counts / 30_000 - 1 / 15).abs().max() < 0.006
    assert draws.applied.float().mean() == pytest.approx(0.5, abs=0.015)
    assert (draws.direction > 0).float().mean() == pytest.approx(0.5, abs=0.015)
    assert draws.share.mean() == pytest.approx(0.7, abs=0.002)
    assert draws.share.std() == pytest.approx(0.05, abs=0.002)
    assert (
        torch.corrcoef(torch.stack([draws.share, draws.direction, draws.applied.double()])).triu(1).abs().max() < 0.03
    )


def test_magnitudes_stay_in_their_range() -> None:
    noise = torch.rand(1000, DRAWS_PER_OPERATION, generator=torch.Generator().manual_seed(2))
    share = operation_draws(RandAugment(9.5, 2.0), noise).share
    assert float(share.min()) >= 0
    assert float(share.max()) == 1.0


def noise_of(*operations: tuple[str, bool]) -> Tensor:
    """Uniform numbers that draw these operations, at the mean magnitude, in the positive direction."""
    names = list(OPERATIONS)
    rows = [[(names.index(name) + 0.5) / 15, 0.0 if applied else 0.9, 0.0, 0.0, 0.1] for name, applied in operations]
    return torch.tensor(rows).flatten()


def test_each_clip_gets_its_own_operations_in_order() -> None:
    frames, policy = clips(), RandAugment(7.0)
    before = frames.clone()
    noise = torch.stack(
        [
            noise_of(("SolarizeAdd", True), ("Invert", True)),
            noise_of(("Invert", True), ("SolarizeAdd", True)),
            noise_of(("Invert", False), ("Equalize", False)),
        ]
    )
    changed = rand_augment(frames, policy, noise)
    assert torch.equal(frames, before)
    assert torch.equal(changed[0], 255 - by_pillow("SolarizeAdd", frames[:1], (77.0,))[0])
    assert torch.equal(changed[1], by_pillow("SolarizeAdd", 255 - frames[1:2], (77.0,))[0])
    assert torch.equal(changed[2], frames[2])


def test_a_clip_is_changed_alike_in_any_batch_and_in_all_frames() -> None:
    frames, policy = clips(), parse_rand_augment("rand-m7-mstd0.5-inc1-p1")
    frames[:, 1] = frames[:, 0]
    seeds = [11, 12, 13]
    together = rand_augment(frames, policy, sample_uniforms(seeds, policy.draws))
    assert torch.equal(together[:, 0], together[:, 1])
    for place in (2, 0, 1):
        alone = rand_augment(frames[place : place + 1], policy, sample_uniforms(seeds[place : place + 1], policy.draws))
        assert torch.equal(alone[0], together[place])


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
