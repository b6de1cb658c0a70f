"""Pictures are turned as their display matrix says, worked out here point by point."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from av.sidedata.sidedata import Type

from pipeline.decode.orientation import Orientation

ONE = 1 << 16  # of a matrix, in 16.16 fixed point
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
MATRICES = [
    matrix
    for a, d in itertools.product((-1, 1), repeat=2)
    for matrix in ((a, 0, 0, d), (0, a, d, 0))
]  # fmt: skip
"""a, b, c, d: to the right x' = a x + c y, down y' = b x + d y."""


def frame(a: int, b: int, c: int, d: int) -> Any:
    matrix = np.array([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30], np.int32)
    return SimpleNamespace(side_data={Type.DISPLAYMATRIX: matrix.tobytes()})


def shown(picture: npt.NDArray[np.uint8], a: int, b: int, c: int, d: int) -> npt.NDArray[np.uint8]:
    """Every pixel where the matrix puts it."""
    points = {(b * x + d * y, a * x + c * y): picture[y, x] for y, x in np.ndindex(picture.shape[:2])}
    top, left = (min(point[axis] for point in points) for axis in (0, 1))
    height, width = (len({point[axis] for point in points}) for axis in (0, 1))
    result = np.empty((height, width, *picture.shape[2:]), np.uint8)
    for (y, x), pixel in points.items():
        result[y - top, x - left] = pixel
    return result


@pytest.mark.parametrize("matrix", MATRICES)
def test_upright_is_what_the_matrix_says(matrix: tuple[int, int, int, int]) -> None:
    upright = Orientation.of(frame(*matrix)).upright(PICTURE)
    assert np.array_equal(upright, shown(PICTURE, *matrix))
    assert upright.flags.c_contiguous


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotation_and_mirror_describe_the_same(matrix: tuple[int, int, int, int]) -> None:
    orientation = Orientation.of(frame(*matrix))
    mirrored = PICTURE[:, ::-1] if orientation.mirrored else PICTURE
    clockwise = np.rot90(mirrored, -orientation.rotation // 90)
    assert np.array_equal(orientation.upright(PICTURE), clockwise)
    a, b, c, d = matrix
    assert orientation.mirrored == (a * d - b * c < 0)


def test_the_eight_differ() -> None:
    assert len({Orientation.of(frame(*matrix)) for matrix in MATRICES}) == 8


@pytest.mark.parametrize("other", [SimpleNamespace(side_data={}), frame(1, 1, -1, 1), frame(0, 0, 0, 0)])
def test_none_and_slanted_ones_change_nothing(other: Any) -> None:
    assert Orientation.of(other) == Orientation()
    assert Orientation().upright(PICTURE) is PICTURE
