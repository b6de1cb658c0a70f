"""Position tables of one input size fitted to another."""

from __future__ import annotations

import pytest
import torch

from hiera_video.weights.pos_embed_interpolation import fit_table, square_grid


def test_interpolation_keeps_what_varies_linearly_in_time() -> None:
    ramp = torch.arange(8.0).view(1, 8, 1)
    fitted = fit_table(ramp, (8, 1, 1), (16, 1, 1))[0, :, 0]
    torch.testing.assert_close(fitted[1:-1].diff(), torch.full((13,), 0.5))


def test_a_table_that_is_not_its_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="has 8 tokens: must be the 12 of its grid"):
        fit_table(torch.zeros(1, 8, 2), (2, 2, 3), (2, 2, 2))


def test_a_grid_is_square_in_space() -> None:
    assert square_grid(8 * 49, frames=8) == (8, 7, 7)
    with pytest.raises(ValueError, match="48 tokens in 1 steps of time: not square in space; name the input size"):
        square_grid(48)
