"""Every random draw of the model as an explicit tensor, so that training is a function of the sample.

A forward pass takes its draws as an argument (`draws=`); without one it draws from torch's default generator. Tensors
in, tensors out: the same code compiles without a graph break and gives the same result on any worker.

    draws = model.draw(batch, generator=torch.Generator().manual_seed(seed_of_micro_batch))
    output = model(video, keep_mask=keep_mask, draws=draws)

Shapes: B batch, U mask units, N hidden tokens of the decoder, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hiera_video.on_device import to_device

MINIMUM_VISIBLE_UNITS = 3


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) that one forward pass consumes; a missing one is drawn in the pass."""

    drop_path: Tensor | None = None
    """``[blocks, 2, B]``: the attention and the MLP branch of every encoder block."""
    head_dropout: Tensor | None = None
    """``[B, C]``: the classifier's features."""
    decoder_tokens: Tensor | None = None
    """``[B, N]``: which hidden tokens a `subset` or `cross` decoder takes: those with the smallest numbers."""


def uniforms(shape: Sequence[int], generator: torch.Generator | None, device: torch.device | None = None) -> Tensor:
    """Uniform numbers, drawn where the generator lives (CPU draws are the same on every machine)."""
    if generator is None:
        return torch.rand(*shape, device=device)
    return to_device(torch.rand(*shape, generator=generator, device=generator.device), device)


def sample_uniforms(
    seeds: Sequence[int] | Sequence[torch.Generator], size: int, device: torch.device | None = None
) -> Tensor:
    """One row of uniform numbers per sample, from its own seed or generator: float32 ``[B, size]``."""
    generators = [torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed for seed in seeds]
    return to_device(torch.stack([uniforms((size,), generator) for generator in generators]), device)


def num_visible_units(num_units: int, mask_ratio: float) -> int:
    """Units that stay visible, ``int(U · (1 − ratio))`` as in the public code: 39 of 392 at 0.9.

    Raises:
        ValueError: the ratio is outside [0, 1) or keeps fewer than three units.
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask_ratio={mask_ratio}: must lie in [0, 1); the paper uses 0.9 for video, 0.6 for images")
    visible = int(num_units * (1 - mask_ratio))
    if visible < MINIMUM_VISIBLE_UNITS:
        highest = 1 - MINIMUM_VISIBLE_UNITS / num_units
        remedy = f"use at most {highest:.3f}" if highest >= 0 else "use a larger input"
        raise ValueError(
            f"mask_ratio={mask_ratio}: keeps {visible} of {num_units} mask units, at least {MINIMUM_VISIBLE_UNITS} "
            f"must stay visible; {remedy}"
        )
    return visible


def require_hidden_units(visible: int, num_units: int, key: str) -> int:
    """``visible``, unless it is all units: the loss, a mean over hidden tokens, would be NaN.

    Raises:
        ValueError: nothing is hidden; ``key`` names the argument at fault.
    """
    if visible >= num_units:
        raise ValueError(
            f"{key}: hides none of {num_units} mask units: at least one must be hidden, since the loss is over hidden "
            f"ones; use a mask_ratio of at least {1 / num_units:.4g}, in the paper 0.9 for video, 0.6 for images"
        )
    return visible


def random_keep_mask(
    batch: int,
    num_units: int,
    mask_ratio: float,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Random masks with the same number of visible units in every sample: bool ``[B, U]``, True = visible.

    Args:
        generator: one for the batch, or one per sample; none: torch's default generator of the device.
        seeds: one per sample, instead of generators.

    Raises:
        ValueError: a ratio that keeps too few units, or another number of seeds than samples.
    """
    visible = num_visible_units(num_units, mask_ratio)
    per_sample = seeds if seeds is not None else generator
    if per_sample is None or isinstance(per_sample, torch.Generator):
        noise = uniforms((batch, num_units), per_sample, device)
    else:
        if len(per_sample) != batch:
            raise ValueError(
                f"{len(per_sample)} seeds or generators for a batch of {batch}: must be one per sample; give as many"
            )
        noise = sample_uniforms(per_sample, num_units, device)
    return keep_smallest(noise, visible)


def keep_smallest(noise: Tensor, visible: int) -> Tensor:
    """True at the ``visible`` smallest numbers of each row of ``[B, U]``."""
    chosen = noise.argsort(dim=1)[:, :visible]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, chosen, True)


def validate_keep_mask(
    keep_mask: Tensor, num_units: int, batch: int | None = None, *, some_hidden: bool = False
) -> int:
    """Validate a mask of a user; the number of visible units of every sample. Reads it, so it waits for the device.

    Raises:
        ValueError: not bool, not ``[B, U]``, counts that differ between samples, fewer than three visible, or with
            ``some_hidden`` none hidden.
    """
    if keep_mask.dtype != torch.bool:
        raise ValueError(f"keep_mask is {keep_mask.dtype}: must be torch.bool, True = visible; use mask.bool()")
    rows = "B" if batch is None else batch
    if keep_mask.ndim != 2 or keep_mask.shape[1] != num_units or batch not in (None, keep_mask.shape[0]):
        raise ValueError(
            f"keep_mask has shape {list(keep_mask.shape)}: must be [{rows}, {num_units}], one value per mask unit in "
            "row-major (t, h, w) order; random_keep_mask makes one"
        )
    counts = keep_mask.sum(dim=1)
    lowest, highest = int(counts.min()), int(counts.max())
    if lowest != highest:
        raise ValueError(
            f"keep_mask keeps between {lowest} and {highest} units: every sample of a batch must keep the same number; "
            "random_keep_mask does"
        )
    if lowest < MINIMUM_VISIBLE_UNITS:
        raise ValueError(
            f"keep_mask keeps {lowest} of {num_units} units: at least {MINIMUM_VISIBLE_UNITS} must stay visible; "
            "lower the mask_ratio"
        )
    return require_hidden_units(lowest, num_units, "keep_mask") if some_hidden else lowest


def visible_unit_index(keep_mask: Tensor, visible: int) -> Tensor:
    """Numbers of the visible units in ascending order, int64 ``[B, K]``, without reading the mask on the host."""
    return keep_mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :visible]


def drop_path_scales(noise: Tensor, rates: Tensor) -> Tensor:
    """Stochastic depth per sample (arXiv 1603.09382): 0 or 1 / keep probability, ``[blocks, 2, B]``."""
    keep = 1.0 - rates.to(noise)[:, None, None]
    return torch.floor(noise + keep) / keep


def dropout(features: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Dropout by given uniform numbers of the same shape."""
    return torch.where(noise < rate, 0.0, features / (1.0 - rate)) if rate > 0 else features
