"""Unrolled order: the inverse of its inverse, and units as spatial blocks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.models.token_order import TokenOrder


@st.composite
def orders(draw: st.DrawFn) -> TokenOrder:
    axes = draw(st.integers(2, 3))
    strides = draw(st.lists(st.tuples(*[st.integers(1, 3)] * axes), min_size=1, max_size=3))
    unit = [torch.tensor(axis).prod().item() for axis in zip(*strides, strict=True)]
    grid = draw(st.tuples(*[st.integers(1, 3)] * axes))
    return TokenOrder(tuple(int(u) * g for u, g in zip(unit, grid, strict=True)), tuple(strides))


@given(orders(), st.integers(1, 2), st.data())
@settings(max_examples=60, deadline=None)
def test_reroll_undoes_unroll(order: TokenOrder, batch: int, data: st.DataObject) -> None:
    poolings = data.draw(st.integers(0, len(order.pool_strides)))
    grid = order.pooled_grid(poolings)
    tokens = torch.randn(batch, torch.Size(grid).numel(), 2)
    units = order.unroll(tokens, poolings)
    assert units.shape == (batch, order.num_units, order.tokens_per_unit(poolings), 2)
    assert torch.equal(order.reroll(units, poolings).flatten(1, -2), tokens)


@given(orders())
@settings(max_examples=40, deadline=None)
def test_raster_index_names_every_token_once(order: TokenOrder) -> None:
    index = order.raster_index()
    assert index.flatten().sort().values.tolist() == list(range(index.numel()))


@given(orders())
@settings(max_examples=40, deadline=None)
def test_units_are_spatial_blocks_in_row_major_order(order: TokenOrder) -> None:
    grid = torch.arange(torch.Size(order.token_grid).numel()).view(1, *order.token_grid, 1)
    units = order.reroll_within_units(order.unroll(grid.flatten(1, -2)))
    for number in range(order.num_units):
        corner = torch.unravel_index(torch.tensor(number), order.unit_grid)
        block = grid[0]
        for axis, (at, size) in enumerate(zip(corner, order.unit_size, strict=True)):
            block = block.narrow(axis, int(at) * size, size)
        assert torch.equal(units[0, number], block)


def test_worked_example_of_the_docstring() -> None:
    order = TokenOrder((4, 4), ((2, 2), (2, 2)))
    assert order.raster_index()[0].tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
