"""Seeded splits of millions of videos, by digests of their names, a column at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.hashing import Digests, sort_digests

SPLITS = ("train", "val", "test")
TRAIN, VAL = SPLITS.index("train"), SPLITS.index("val")
Codes = npt.NDArray[np.int32]


def assign_splits(groups: Digests, classes: Codes, given: Codes, *, val_share: float) -> Codes:
    """A split for every row: the given one, else one drawn for its source video.

    Of each class, ``val_share`` of its source videos, and at least one when it has two, go to ``val``: those with
    the smallest digests. The others and all unlabelled ones go to ``train``. A source video that has rows with a
    given split follows the first of those, so that no draw separates its clips.

    Args:
        groups: seeded digest of each row's source video, ``[N]``.
        classes: code of each row's class, -1 for none.
        given: index into `SPLITS` of each row's given split, -1 for none.

    Returns:
        An index into `SPLITS` per row.
    """
    if (given >= 0).all():
        return given
    group_of_row, count = _numbered_groups(groups)
    drawn = np.where(_is_val(_first_of_groups(classes, group_of_row, count), val_share), VAL, TRAIN)
    fixed = _first_of_groups(given, group_of_row, count)
    by_group = np.where(fixed >= 0, fixed, drawn).astype(np.int32)
    return np.where(given >= 0, given, by_group[group_of_row])


def _is_val(class_of_group: Codes, val_share: float) -> npt.NDArray[np.bool_]:
    """Which groups ``[G]`` (in the order of their digests) become `val`: the first few of each class."""
    order = np.argsort(class_of_group, kind="stable")
    ordered = class_of_group[order]
    first = np.searchsorted(ordered, ordered)
    size = np.searchsorted(ordered, ordered, side="right") - first
    rank = np.arange(len(order)) - first
    wanted = np.where(size > 1, np.maximum(1, np.round(size * val_share)), 0) * (val_share > 0)
    is_val = np.zeros(len(order), np.bool_)
    is_val[order] = (rank < wanted) & (ordered >= 0)
    return is_val


def _numbered_groups(groups: Digests) -> tuple[Codes, int]:
    """A number per row, equal for equal digests and ascending with them, and how many there are."""
    order, is_new = sort_digests(groups)
    numbers = np.empty(len(groups), np.int32)
    numbers[order] = np.cumsum(is_new, dtype=np.int32) - 1
    return numbers, int(is_new.sum())


def _first_of_groups(codes: Codes, group_of_row: Codes, count: int) -> Codes:
    """The first code of each group's rows that is not -1 ``[G]``; -1 without one."""
    rows = np.flatnonzero(codes >= 0)[::-1]
    first = np.full(count, -1, np.int32)
    first[group_of_row[rows]] = codes[rows]
    return first
