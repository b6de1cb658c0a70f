"""Position tables of one input size fitted to another: bicubic in space, linear in time.

Shapes: N tokens, C channels.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int, int]
"""Tokens in time, height, width; 1 in time for images."""


def fit_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Interpolate ``[1, N, C]`` from one token grid to another.

    Raises:
        ValueError: a table that does not have the source grid's tokens.
    """
    if table.shape[1] != math.prod(source):
        raise ValueError(
            f"position table has {table.shape[1]} tokens: must be the {math.prod(source)} of its grid {source}; "
            "give the grid that it was made for"
        )
    return _fit_time(_fit_space(table, source, target), (source[0], *target[1:]), target)


def _fit_space(table: Tensor, source: Grid, target: Grid) -> Tensor:
    if source[1:] == target[1:]:
        return table
    frames = table.reshape(*source, -1).permute(0, 3, 1, 2)  # [t, C, h, w]
    resized = functional.interpolate(frames.float(), size=target[1:], mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2)[None].to(table.dtype)


def _fit_time(table: Tensor, source: Grid, target: Grid) -> Tensor:
    if source[0] == target[0]:
        return table
    lines = table.reshape(source[0], source[1] * source[2], -1).permute(1, 2, 0)  # [h·w, C, t]
    resized = functional.interpolate(lines.float(), size=target[0], mode="linear", align_corners=False)
    return resized.permute(2, 0, 1).flatten(0, 1)[None].to(table.dtype)


def square_grid(tokens: int, frames: int = 1) -> Grid:
    """The grid of a table whose size is not recorded: square in space, as in all published weights.

    Raises:
        ValueError: the tokens of a frame form no square.
    """
    side = math.isqrt(tokens // frames)
    if side * side * frames != tokens:
        raise ValueError(
            f"position table has {tokens} tokens in {frames} steps of time: not square in space; "
            "name the input size of the weights (source_input_size)"
        )
    return frames, side, side
