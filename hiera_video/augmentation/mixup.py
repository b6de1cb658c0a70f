"""Soft targets: label smoothing, mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) within a micro-batch.

One draw for a micro-batch, as SlowFast and timm have it. Shapes: B samples, C classes, T frames, H, W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.rules import Checked, Rules

# Of the micro-batches where both are on; the others get mixup. Not confirmed by the paper, 0.5 as in SlowFast.
CUTMIX_SHARE = 0.5


@dataclass(frozen=True)
class MixConfig(Checked):
    """How samples of a micro-batch are mixed with each other."""

    mixup: float = 0.0
    """Mixup's alpha: shares come from Beta(alpha, alpha); 0 for none (paper Tab. 11b: 0.8)."""
    cutmix: float = 0.0
    """Cutmix's alpha; 0 for none (paper Tab. 11b: 1.0)."""
    probability: float = 1.0
    """Probability that a micro-batch is mixed at all; not confirmed by the paper, 1 as in SlowFast."""

    def rules(self) -> Rules:
        yield "mixup", self.mixup >= 0, "must not be negative; use 0 for none"
        yield "cutmix", self.cutmix >= 0, "must not be negative; use 0 for none"
        yield "probability", 0.0 <= self.probability <= 1.0, "must lie in [0, 1]; omit it for the default"

    @property
    def on(self) -> bool:
        """Whether samples are mixed at all."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


class Mix(NamedTuple):
    """How the samples of one micro-batch are mixed."""

    partners: Tensor
    """int64 ``[B]``: the sample that each one is mixed with, never itself."""
    share: float
    """The share of each sample itself."""
    box: tuple[slice, slice] | None
    """Rows and columns where the partner's pixels are pasted (cutmix); none: everywhere, in proportion (mixup)."""


def draw_mix(config: MixConfig, batch: int, height: int, width: int, generator: torch.Generator) -> Mix | None:
    """Draw how a micro-batch is mixed; None: not mixed (also a micro-batch of one sample)."""
    draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    if batch < 2 or not config.on or draw.uniform() >= config.probability:
        return None
    order = torch.from_numpy(draw.permutation(batch))
    partners = torch.empty_like(order).scatter_(0, order, order.roll(-1))
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
    others = pixels[mix.partners.to(pixels.device)]
    if mix.box is None:
        return pixels * mix.share + others * (1.0 - mix.share)
    mixed = pixels.clone()
    mixed[..., *mix.box] = others[..., *mix.box]
    return mixed


def mix_targets(targets: Tensor, mix: Mix | None) -> Tensor:
    """Mix soft targets ``[B, C]`` in the pixels' proportion."""
    if mix is None:
        return targets
    return targets * mix.share + targets[mix.partners.to(targets.device)] * (1.0 - mix.share)


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


def _cutmix_box(height: int, width: int, share: float, draw: np.random.Generator) -> tuple[slice, slice]:
    """A box of 1 - ``share`` of the area around a random point, clipped at the frame's border."""
    side = math.sqrt(1.0 - share)
    rows, columns = int(height * side), int(width * side)
    row, column = int(draw.integers(height)), int(draw.integers(width))
    return (
        slice(max(0, row - rows // 2), min(height, row + rows // 2)),
        slice(max(0, column - columns // 2), min(width, column + columns // 2)),
    )
