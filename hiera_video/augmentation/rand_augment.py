"""RandAugment (arXiv 1909.13719) as timm defines it by strings like `rand-m7-mstd0.5-inc1`; SlowFast uses that one.

For each clip n operations are drawn, with replacement, out of fifteen; each is applied with probability 0.5 at a
magnitude from a normal distribution around m, cut to [0, 10]. All frames of a clip get the same operations and
arguments. Legend: B clips, T frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hiera_video.augmentation import image_ops
from hiera_video.models.config import EncoderConfig
from hiera_video.on_device import to_device

HIGHEST_MAGNITUDE = 10.0
DRAWS_PER_OPERATION = 5  # which, whether, two for the normal distribution, which direction


@dataclass(frozen=True)
class RandAugment:
    """The settings in a string like `rand-m7-mstd0.5-inc1`."""

    magnitude: float = HIGHEST_MAGNITUDE
    """m: mean strength, of 10."""
    magnitude_std: float = 0.0
    """mstd: standard deviation of the strength."""
    operations: int = 2
    """n: operations drawn per clip."""
    probability: float = 0.5
    """p: probability that a drawn operation is applied."""

    @property
    def draws(self) -> int:
        """Uniform numbers that one clip consumes."""
        return self.operations * DRAWS_PER_OPERATION


def parse_rand_augment(text: str) -> RandAugment:
    """Read timm's string: `rand`, then in any order m, mstd, n, p and inc1, with dashes between.

    Raises:
        ValueError: another policy, an unknown section, or a value outside its rule.
    """
    kind, *sections = text.split("-")
    values: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"(mstd|m|n|p|inc)(\d+(?:\.\d+)?)", section)
        if match is None:
            raise ValueError(f"{text}: unknown section {section!r}; use m, mstd, n, p, inc, each with a number")
        values[match[1]] = float(match[2])
    if kind != "rand" or values.get("inc") != 1:
        raise ValueError(f"{text}: must be a `rand` policy with `inc1` (operations that grow with the magnitude)")
    policy = RandAugment(
        values.get("m", HIGHEST_MAGNITUDE), values.get("mstd", 0.0), int(values.get("n", 2)), values.get("p", 0.5)
    )
    if policy.magnitude > HIGHEST_MAGNITUDE or policy.probability > 1 or policy.operations < 1:
        raise ValueError(f"{text}: m must lie in [0, 10], p in [0, 1], and n must be at least 1")
    return policy


class Operation(NamedTuple):
    """One of the fifteen."""

    apply: Callable[..., Tensor]
    """Frames uint8 ``[N, T, H, W, 3]`` and an argument for each clip ``[N]`` → frames; of moves also ``fill``."""
    argument: Callable[[Tensor, Tensor], Tensor]
    """Strength as a share of the highest, and direction (±1) → argument."""
    moves: bool = False
    """Whether it leaves pixels uncovered, which take the colour ``fill``."""


def _signed(highest: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda share, direction: direction * share * highest


def _enhancement(share: Tensor, direction: Tensor) -> Tensor:
    """1 changes nothing; from there up to 0.9 in both directions, and never below 0.1."""
    return (1.0 + direction * share * 0.9).clamp(min=0.1)


def _none(share: Tensor, _: Tensor) -> Tensor:
    return share


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(image_ops.auto_contrast, _none),
    "Equalize": Operation(image_ops.equalize, _none),
    "Invert": Operation(image_ops.invert, _none),
    "Rotate": Operation(image_ops.rotate, _signed(30.0), moves=True),
    "PosterizeIncreasing": Operation(image_ops.posterize, lambda share, _: 4 - torch.floor(share * 4)),
    "SolarizeIncreasing": Operation(image_ops.solarize, lambda share, _: 256 - torch.floor(share * 256)),
    "SolarizeAdd": Operation(image_ops.solarize_add, lambda share, _: torch.floor(share * 110)),
    "ColorIncreasing": Operation(image_ops.color, _enhancement),
    "ContrastIncreasing": Operation(image_ops.contrast, _enhancement),
    "BrightnessIncreasing": Operation(image_ops.brightness, _enhancement),
    "SharpnessIncreasing": Operation(image_ops.sharpness, _enhancement),
    "ShearX": Operation(image_ops.moved_by(1), _signed(0.3), moves=True),
    "ShearY": Operation(image_ops.moved_by(3), _signed(0.3), moves=True),
    "TranslateXRel": Operation(image_ops.moved_by(2, axis=3), _signed(0.45), moves=True),
    "TranslateYRel": Operation(image_ops.moved_by(5, axis=2), _signed(0.45), moves=True),
}
"""timm's names, in timm's order."""


class OperationDraws(NamedTuple):
    """The draws for one operation of every clip."""

    number: Tensor
    """Position in `OPERATIONS`, int64 ``[B]``."""
    applied: Tensor
    """Whether it is applied, bool ``[B]``."""
    share: Tensor
    """Strength as a share of the highest, float64 ``[B]``."""
    direction: Tensor
    """1 or -1, float64 ``[B]``."""


def operation_draws(policy: RandAugment, noise: Tensor) -> OperationDraws:
    """Turn uniform numbers ``[B, 5]`` in [0, 1) into draws."""
    which, whether, radius, angle, direction = noise.double().unbind(1)
    normal = torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)
    strength = (policy.magnitude + policy.magnitude_std * normal).clamp(0, HIGHEST_MAGNITUDE)
    return OperationDraws(
        number=(which * len(OPERATIONS)).long(),
        applied=whether < policy.probability,
        share=strength / HIGHEST_MAGNITUDE,
        direction=torch.where(direction > 0.5, -1.0, 1.0).double(),
    )


def rand_augment(frames: Tensor, policy: RandAugment, noise: Tensor, fill: Sequence[float] = image_ops.GREY) -> Tensor:
    """Change every clip by its own draws.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``.
        noise: uniform numbers ``[B, policy.draws]`` on the CPU, for instance `sample_uniforms(seeds, policy.draws)`.
        fill: colour where a move leaves no pixel: `fill_colour` of the model's config.

    Returns:
        uint8 of the same shape; the input is not modified.
    """
    changed = frames.clone()
    for numbers in torch.split(noise, DRAWS_PER_OPERATION, dim=1):
        draws = operation_draws(policy, numbers)
        for number, operation in enumerate(OPERATIONS.values()):
            clips = torch.nonzero(draws.applied & (draws.number == number))[:, 0]
            if len(clips):
                argument = operation.argument(draws.share[clips], draws.direction[clips]).float()
                clips = to_device(clips, frames.device)
                uncovered = {"fill": fill} if operation.moves else {}
                changed[clips] = operation.apply(changed[clips], to_device(argument, frames.device), **uncovered)
    return changed


def fill_colour(config: EncoderConfig) -> tuple[float, ...]:
    """Where a move leaves no pixel: grey in videos (SF: `create_random_augment`), the mean in images (timm, as MAE)."""
    return (
        image_ops.GREY if config.is_video else tuple(float(min(255, round(255 * mean))) for mean in config.pixel_mean)
    )
