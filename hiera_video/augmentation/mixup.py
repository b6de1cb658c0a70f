"""Soft targets: label smoothing, mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) within a micro-batch.

One draw for a micro-batch, as SlowFast and timm have it. Shapes: B samples, C classes, T frames, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.on_device import to_device
from hiera_video.rules import Checked, Rules

# Of the micro-batches where both are on; the others get mixup. Not confirmed by the paper, 0.5 as in SlowFast.
CUTMIX_SHARE = 0.5


@dataclass(frozen=True)
class MixConfig(Checked):
    """How samples of a micro-batch are mixed with each other; every micro-batch is (not confirmed; as in SlowFast)."""

    mixup: float = 0.0
    """Mixup's alpha: shares come from Beta(alpha, alpha); 0 for none (paper Tab. 11b: 0.8)."""
    cutmix: float = 0.0
    """Cutmix's alpha; 0 for none (paper Tab. 11b: 1.0)."""

    def rules(self) -> Rules:
        yield "mixup", self.mixup >= 0, "must not be negative; use 0 for none"
        yield "cutmix", self.cutmix >= 0, "must not be negative; use 0 for none"

    @property
    def on(self) -> bool:
        """Whether samples are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


class Mix(NamedTuple):
    """How the samples of one micro-batch are mixed."""

    partners: Tensor
    """int64 ``[B]``: the sample that each one is mixed with, always one of another video."""
    share: float
    """The share of each sample itself."""
    box: tuple[slice, slice] | None
    """Rows and columns where the partner's pixels are pasted (cutmix); none: everywhere, in proportion (mixup)."""


def draw_mix(
    config: MixConfig, videos: Sequence[str], height: int, width: int, generator: torch.Generator
) -> Mix | None:
    """Draw how a micro-batch is mixed; None: not mixed (also a micro-batch of a single video).

    Args:
        videos: ``[B]`` which video each sample shows; a view mixed with another view of its video would keep its label.
    """
    draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    if len(set(videos)) < 2 or not config.on:
        return None
    partners = torch.from_numpy(_other_videos(videos, draw))
    both = config.mixup > 0 and config.cutmix > 0
    cuts = draw.uniform() < CUTMIX_SHARE if both else config.cutmix > 0
    if not cuts:
        return Mix(partners, draw.beta(config.mixup, config.mixup), None)
    rows, columns = _cutmix_box(height, width, draw.beta(config.cutmix, config.cutmix), draw)
    covered = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return Mix(partners, 1.0 - covered, (rows, columns))


def mix_pixels(pixels: Tensor, mix: Mix | None) -> Tensor:
    """Mix ``[B, 3, (T), H, W]``, all frames in the same way."""
    if mix is None:
        return pixels
    others = pixels[to_device(mix.partners, pixels.device)]
    if mix.box is None:
        return pixels * mix.share + others * (1.0 - mix.share)
    mixed = pixels.clone()
    mixed[..., *mix.box] = others[..., *mix.box]
    return mixed


def mix_targets(targets: Tensor, mix: Mix | None) -> Tensor:
    """Mix soft targets ``[B, C]`` in the pixels' proportion."""
    if mix is None:
        return targets
    return targets * mix.share + targets[to_device(mix.partners, targets.device)] * (1.0 - mix.share)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels int64 ``[B]`` as distributions ``[B, C]``; a negative label (none) is a row of zeros.

    ``smoothing`` is spread evenly over all classes, the right one included (arXiv 1512.00567).
    """
    certain = functional.one_hot(labels.clamp(min=0), num_classes).float()
    return (certain * (1.0 - smoothing) + smoothing / num_classes) * (labels >= 0)[:, None]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the samples that have a target, scalar; 0 when none has."""
    labelled = (targets.sum(1) > 0).sum().clamp(min=1)
    return functional.cross_entropy(logits.float(), targets, reduction="sum") / labelled


def _other_videos(videos: Sequence[str], draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each sample one of another video, int64 ``[B]``: each sample once, unless one video has more than half."""
    names, numbers, views = np.unique(np.array(videos), return_inverse=True, return_counts=True)
    if 2 * views.max() > len(videos):
        return np.array([draw.choice(np.flatnonzero(numbers != number)) for number in numbers])
    # The views of a video side by side, videos in random order: a shift by the most views of any leaves every video.
    order = draw.permutation(len(videos))
    first = np.full(len(names), len(videos))
    np.minimum.at(first, numbers[order], np.arange(len(videos)))
    order = order[np.argsort(first[numbers[order]], kind="stable")]
    partners = np.empty_like(order)
    partners[order] = np.roll(order, -views.max())
    return partners


def _cutmix_box(height: int, width: int, share: float, draw: np.random.Generator) -> tuple[slice, slice]:
    """A box of 1 - ``share`` of the area around a random point, clipped at the frame's border."""
    side = math.sqrt(1.0 - share)
    rows, columns = int(height * side), int(width * side)
    row, column = int(draw.integers(height)), int(draw.integers(width))
    return (
        slice(max(0, row - rows // 2), min(height, row + rows // 2)),
        slice(max(0, column - columns // 2), min(width, column + columns // 2)),
    )
