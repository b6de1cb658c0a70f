"""RandAugment: what is drawn against timm's definition, and which clips are changed by what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiera_video.augmentation.rand_augment import (
    DRAWS_PER_OPERATION,
    OPERATIONS,
    RandAugment,
    fill_colour,
    operation_draws,
    parse_rand_augment,
    rand_augment,
)
from hiera_video.models.presets import model_config
from hiera_video.models.random_draws import sample_uniforms
from tests.support.pillow_reference import PILLOW, WIDTH, by_pillow, clips


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


IMAGENET_MEAN = (124, 116, 104)
"""timm: `tuple(min(255, round(255 * x)) for x in mean)`."""


def timms_argument(name: str, level: float, negative: bool) -> float:
    """timm's `level_to_arg` of each operation (timm/data/auto_augment.py), written anew from its ranges."""
    sign = -1 if negative else 1
    if name in ("AutoContrast", "Equalize", "Invert"):
        return 0.0
    if name.endswith("Increasing") and name.startswith(("Color", "Contrast", "Brightness", "Sharpness")):
        return max(0.1, 1.0 + sign * level / 10 * 0.9)
    whole = {
        "PosterizeIncreasing": 4 - int(level / 10 * 4),
        "SolarizeIncreasing": 256 - int(level / 10 * 256),
        "SolarizeAdd": min(128, int(level / 10 * 110)),
    }
    if name in whole:
        return float(whole[name])
    return sign * level / 10 * {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}.get(name, 0.45)


def by_timms_rules(frames: Tensor, noise: Tensor, magnitude: float, std: float) -> Tensor:
    """The drawn operations one after the other, by Pillow; fill as timm has it for ImageNet."""
    changed = frames.clone()
    for clip, numbers in enumerate(noise.double()):
        for which, whether, radius, angle, direction in numbers.view(-1, 5).tolist():
            if whether >= 0.5:
                continue
            name = list(PILLOW)[int(which * 15)]
            gauss = math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)
            level = max(0.0, min(magnitude + std * gauss, 10.0))
            argument = timms_argument(name, level, direction > 0.5)
            changed[clip] = by_pillow(name, changed[clip : clip + 1], (argument,), IMAGENET_MEAN)[0]
    return changed


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m9-n6-mstd0.5-inc1"])  # MAE; MViTv2 from scratch
def test_the_policies_of_images_are_timms(text: str) -> None:
    policy = parse_rand_augment(text)
    assert (policy.operations, policy.magnitude, policy.magnitude_std) == (6 if "n6" in text else 2, 9.0, 0.5)
    frames = clips(smooth=True)[:, :1].repeat(16, 1, 1, 1, 1)  # images: one frame each
    noise = sample_uniforms(range(len(frames)), policy.draws)
    ours = rand_augment(frames, policy, noise, fill_colour(model_config("hiera_base_224")))
    theirs = by_timms_rules(frames, noise, 9.0, 0.5)
    difference = (ours.int() - theirs.int()).abs().float().mean((1, 2, 3, 4))
    # Moves differ by their kernel, and what follows (equalize, solarize) makes single levels larger.
    assert difference.median() < 0.5
    assert difference.mean() < 3
    applied = (noise.view(len(frames), policy.operations, 5)[..., 1] < 0.5).sum(1)
    assert torch.equal(ours[applied == 0], frames[applied == 0])
    assert not torch.equal(ours, frames)


def test_what_a_move_uncovers_has_the_mean_of_images_and_is_grey_in_videos() -> None:
    assert fill_colour(model_config("hiera_base_224")) == IMAGENET_MEAN
    assert fill_colour(model_config("hiera_base_16x224")) == (128, 128, 128)
    frames, policy = clips()[:1], RandAugment(7.0)
    changed = rand_augment(frames, policy, noise_of(("TranslateXRel", True), ("Invert", False))[None], IMAGENET_MEAN)
    edge = changed[0, :, :, WIDTH - 2]
    assert torch.equal(edge, torch.tensor(IMAGENET_MEAN, dtype=torch.uint8).expand_as(edge))
