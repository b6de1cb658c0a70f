"""From pixels to tokens: the overlapping patch convolution, dense or for the visible units alone, and positions.

Shapes: B batch, T frames, H height, W width, U mask units, K visible units, M tokens of a unit, C channels, G = B·K;
`*field` are the pixels along each axis that the tokens of one unit see.

Source: Hiera (arXiv 2306.00989) §3 and its public code; separate position tables as in MAE-ST (arXiv 2205.09113).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hiera_video.models.config import EncoderConfig
from hiera_video.models.token_order import TokenOrder


class PatchEmbed(nn.Module):
    """The overlapping patch convolution of MViTv2 and Hiera, kernel 7 stride 4 (in time 3 and 2).

    A visible token may see pixels of a neighbouring unit, because the kernel overlaps; the public code therefore
    multiplies the input by the mask before a convolution over everything. With a mask this does the same arithmetic
    for the visible units only: it blanks hidden units, gathers the field of pixels of each visible one, and convolves
    these fields in one product.
    """

    def __init__(self, config: EncoderConfig, order: TokenOrder) -> None:
        super().__init__()
        self.order = order
        self.stride, self.padding, self.kernel = config.patch_stride, config.patch_padding, config.patch_kernel
        convolution = nn.Conv3d if config.is_video else nn.Conv2d
        initial = convolution(config.in_chans, config.embed_dim, self.kernel)  # type: ignore[arg-type]
        self.weight, self.bias = initial.weight, initial.bias
        self.unit_pixels = tuple(m * s for m, s in zip(order.unit_size, self.stride, strict=True))
        self.field = tuple((m - 1) * s + k for m, s, k in zip(order.unit_size, self.stride, self.kernel, strict=True))

    def forward(self, pixels: Tensor, keep_mask: Tensor | None = None, unit_index: Tensor | None = None) -> Tensor:
        """``[B, 3, (T), H, W]`` → unrolled tokens of all units ``[B, U, M, C]``, or of the visible ones.

        ``keep_mask`` is bool ``[B, U]``, True = visible; ``unit_index`` the visible units' numbers, int64 ``[B, K]``.
        """
        if keep_mask is None or unit_index is None:
            convolve = functional.conv3d if len(self.kernel) == 3 else functional.conv2d
            grid = convolve(pixels, self.weight, self.bias, self.stride, self.padding)
            return self.order.unroll(grid.flatten(2).transpose(1, 2))
        return self._visible(pixels, keep_mask, unit_index)

    def _visible(self, pixels: Tensor, keep_mask: Tensor, unit_index: Tensor) -> Tensor:
        fields = self._fields(pixels * self._visibility(keep_mask).to(pixels.dtype), unit_index)
        batch, kept = unit_index.shape
        columns = self._columns(fields.flatten(0, 1))  # [B·K, M raster, 3·kernel]
        tokens = functional.linear(columns, self.weight.flatten(1), self.bias)
        unit = TokenOrder(self.order.unit_size, self.order.pool_strides)
        return unit.unroll(tokens).reshape(batch, kept, -1, tokens.shape[-1])

    def _fields(self, pixels: Tensor, unit_index: Tensor) -> Tensor:
        """The pixels that each unit's tokens see: ``[B, K, 3, *field]``."""
        padded = functional.pad(
            pixels, [side for axis in reversed(range(len(self.field))) for side in self._margins(axis)]
        )
        for axis, (size, step) in enumerate(zip(self.field, self.unit_pixels, strict=True)):
            padded = padded.unfold(2 + axis, size, step)  # a view: [B, 3, *unit_grid, *field]
        rows = torch.arange(pixels.shape[0], device=pixels.device)[:, None]
        return padded.movedim(1, 1 + len(self.field))[(rows, *self._places(unit_index))]

    def _places(self, unit_index: Tensor) -> list[Tensor]:
        """Row-major numbers of units as positions along the grid's axes; `torch.unravel_index` waits for the device."""
        places = []
        for size in reversed(self.order.unit_grid):
            places.append(unit_index % size)
            unit_index = unit_index // size
        return places[::-1]

    def _margins(self, axis: int) -> tuple[int, int]:
        """Zero padding before and behind an axis, so that the last unit's field is complete."""
        before = self.padding[axis]
        return before, max(0, self.field[axis] - before - self.unit_pixels[axis])

    def _visibility(self, keep_mask: Tensor) -> Tensor:
        """Which pixels belong to a visible unit: bool ``[B, 1, (T), H, W]``."""
        visible = keep_mask.view(-1, 1, *self.order.unit_grid)
        for axis, pixels in enumerate(self.unit_pixels):
            visible = visible.repeat_interleave(pixels, dim=2 + axis)
        return visible

    def _columns(self, fields: Tensor) -> Tensor:
        """Kernel-sized windows of every field: ``[G, 3, *field]`` → ``[G, M, 3·kernel]``."""
        axes = len(self.field)
        for axis, (size, step) in enumerate(zip(self.kernel, self.stride, strict=True)):
            fields = fields.unfold(2 + axis, size, step)  # a view: [G, 3, *unit, *kernel]
        windows = fields.movedim(1, 1 + axes)
        return windows.reshape(windows.shape[0], math.prod(self.order.unit_size), -1)


class PositionEmbedding(nn.Module):
    """Learned positions per token: one table, or a table in space plus one in time (video)."""

    def __init__(self, config: EncoderConfig, order: TokenOrder) -> None:
        super().__init__()
        self.order, self.separable = order, config.sep_pos_embed
        if self.separable:
            time, *space = order.token_grid
            self.spatial = nn.Parameter(torch.zeros(1, math.prod(space), config.embed_dim))
            self.temporal = nn.Parameter(torch.zeros(1, time, config.embed_dim))
        else:
            self.table = nn.Parameter(torch.zeros(1, math.prod(order.token_grid), config.embed_dim))
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, unit_index: Tensor | None = None) -> Tensor:
        """Unrolled order: all units ``[1, U, M, C]``, or the visible ones ``[B, K]`` → ``[B, K, M, C]``."""
        raster = (self.temporal[:, :, None] + self.spatial[:, None]).flatten(1, 2) if self.separable else self.table
        units = self.order.unroll(raster)
        return units if unit_index is None else units[0][unit_index]
