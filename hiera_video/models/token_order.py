"""Unrolled token order: every mask unit contiguous, every pooling a maximum over one axis.

Shapes: B batch, N tokens, U mask units, M tokens of a unit, C channels.

The network pools 2×2 in space at each stage entry and attends within mask units first. If tokens lie in unrolled
order ``[B, U, M, C]``, both are plain views. Within a unit the order is nested: the offsets of the *first* pooling
are slowest, so ``x.view(B, U, 4, M // 4, C).amax(2)`` is the first max-pooling and leaves the rest in the order
that the second pooling wants.

Worked example, one 4×4 unit, two poolings of 2×2, raster numbers of the tokens::

     0  1 |  2  3        unrolled: offset (0,0):  0  2  8 10
     4  5 |  6  7                  offset (0,1):  1  3  9 11
    ------+------                  offset (1,0):  4  6 12 14
     8  9 | 10 11                  offset (1,1):  5  7 13 15
    12 13 | 14 15

The first pooling takes the maximum down each column: {0, 1, 4, 5}, {2, 3, 6, 7}, ... which are the 2×2 blocks.

Source: Hiera (arXiv 2306.00989), appendix "Unroll". The public code keeps the units fastest instead; unit-major order
gives the same sums with contiguous windows, and lets hidden units be skipped by one index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenOrder:
    """The token grid of one input size, cut into mask units by the pooling strides.

    Args:
        token_grid: tokens per axis, (t, h, w) or (h, w).
        pool_strides: one stride per pooling, first pooling first; their product is the mask unit.
    """

    token_grid: tuple[int, ...]
    pool_strides: tuple[tuple[int, ...], ...]

    @property
    def unit_size(self) -> tuple[int, ...]:
        """Tokens of one mask unit per axis."""
        return self.pooled_unit(0)

    @property
    def unit_grid(self) -> tuple[int, ...]:
        """Mask units per axis, in row-major order."""
        return tuple([tokens // unit for tokens, unit in zip(self.token_grid, self.unit_size, strict=True)])

    @property
    def num_units(self) -> int:
        """Number of mask units of one input."""
        return math.prod(self.unit_grid)

    def tokens_per_unit(self, poolings: int = 0) -> int:
        """Tokens of a unit that are left after a number of poolings."""
        return math.prod([math.prod(stride) for stride in self.pool_strides[poolings:]])

    def pooled_unit(self, poolings: int) -> tuple[int, ...]:
        """Tokens of a unit per axis after a number of poolings."""
        axes = len(self.token_grid)
        return tuple([math.prod([stride[axis] for stride in self.pool_strides[poolings:]]) for axis in range(axes)])

    def pooled_grid(self, poolings: int) -> tuple[int, ...]:
        """Tokens of the whole grid per axis after a number of poolings."""
        return tuple([u * p for u, p in zip(self.unit_grid, self.pooled_unit(poolings), strict=True)])

    def unroll(self, tokens: Tensor, poolings: int = 0) -> Tensor:
        """Raster order ``[B, N, C]`` → unrolled order ``[B, U, M, C]``, for a grid after ``poolings`` poolings."""
        batch, _, channels = tokens.shape
        strides = self.pool_strides[poolings:]
        split = [size for axis in range(len(self.token_grid)) for size in self._axis_digits(axis, strides)]
        digits, axes = len(strides) + 1, len(self.token_grid)
        order = _unrolled_axes(axes, digits)
        unrolled = tokens.reshape(batch, *split, channels).permute(0, *order, 1 + axes * digits)
        return unrolled.reshape(batch, self.num_units, self.tokens_per_unit(poolings), channels)

    def reroll(self, units: Tensor, poolings: int = 0) -> Tensor:
        """Unrolled order of all units ``[B, U, M, C]`` → spatial order ``[B, (t), h, w, C]``."""
        batch, _, _, channels = units.shape
        strides = self.pool_strides[poolings:]
        digits, axes = len(strides) + 1, len(self.token_grid)
        nested = [*self.unit_grid, *(size for stride in strides for size in stride)]
        inverse = _inverse(_unrolled_axes(axes, digits))
        spatial = units.reshape(batch, *nested, channels).permute(0, *inverse, 1 + axes * digits)
        return spatial.reshape(batch, *self.pooled_grid(poolings), channels)

    def reroll_within_units(self, units: Tensor, poolings: int = 0) -> Tensor:
        """Unrolled order of any units ``[B, K, M, C]`` → spatial order within each, ``[B, K, (t), h, w, C]``."""
        batch, kept, tokens, channels = units.shape
        single = TokenOrder(self.unit_size, self.pool_strides)
        spatial = single.reroll(units.reshape(batch * kept, 1, tokens, channels), poolings)
        return spatial.reshape(batch, kept, *spatial.shape[1:])

    def raster_index(self, poolings: int = 0) -> Tensor:
        """Raster number of every unrolled token, int64 ``[U, M]``."""
        raster = torch.arange(math.prod(self.pooled_grid(poolings)))
        return self.unroll(raster.view(1, -1, 1), poolings)[0, :, :, 0]

    def _axis_digits(self, axis: int, strides: Sequence[tuple[int, ...]]) -> list[int]:
        """An axis as digits, slowest first: unit number, then the last pooling's offset ... the first's."""
        return [self.unit_grid[axis], *(stride[axis] for stride in reversed(strides))]


def _unrolled_axes(axes: int, digits: int) -> list[int]:
    """Order of the split axes (1-based, after the batch): units first, then the poolings from the first on."""
    first_axis = [1 + axis * digits for axis in range(axes)]
    return [start + digit for digit in (0, *range(digits - 1, 0, -1)) for start in first_axis]


def _inverse(order: Sequence[int]) -> list[int]:
    return [1 + order.index(axis) for axis in range(1, len(order) + 1)]
