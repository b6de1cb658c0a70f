"""RandAugment: what is drawn against timm's definition, and which clips are changed by what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiera_video.augmentation.rand_augment import (
    DRAWS_PER_OPERATION,
    OPERATIONS,
    RandAugment,
    operation_draws,
    parse_rand_augment,
    rand_augment,
)
from hiera_video.models.random_draws import sample_uniforms
from tests.support.pillow_reference import by_pillow, clips


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
