"""Seeded order and seeded splits of millions of videos, by digests of their names, a column at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_ROWS_AT_ONCE = 4_000  # so that the arrays of a step stay in the processor's cache
_DIGESTS_AT_ONCE = 100_000
_LONGEST_NAME = 4096
SPLITS = ("train", "val", "test")
TRAIN, VAL = SPLITS.index("train"), SPLITS.index("val")
Codes = npt.NDArray[np.int32]
Digests = npt.NDArray[np.uint64]
_WEIGHTS: Digests = np.append(np.random.default_rng(0).integers(0, 2**64, _LONGEST_NAME, np.uint64), np.uint64(0))


def name_digests(names: pa.ChunkedArray | pa.Array) -> Digests:
    """A 64-bit digest per name ``[N]``, uniform, the same everywhere and always.

    Multilinear hashing (a random weight per byte position; Lemire and Kaser, "Strongly universal string hashing is
    fast", 2014) with splitmix64's finish. Not for secrets; 10 million names take seconds and no Python object each.
    Names beyond 4096 bytes are told apart by their first 4096 and their length.
    """
    chunks = names.chunks if isinstance(names, pa.ChunkedArray) else [names]
    parts = [
        _digests_of(pc.cast(chunk.slice(start, _ROWS_AT_ONCE), pa.large_binary()))
        for chunk in chunks
        for start in range(0, len(chunk), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def seeded(digests: Digests, seed: int, purpose: str) -> Digests:
    """New digests for one seed and purpose, independent of those for another."""
    salt = np.random.default_rng([seed, *purpose.encode()]).integers(0, 2**64, 2, np.uint64)
    return _mixed(_mixed(digests ^ salt[0]) ^ salt[1])


def _digests_of(names: pa.LargeBinaryArray) -> Digests:
    offsets = np.frombuffer(names.buffers()[1], np.int64)[names.offset : names.offset + len(names) + 1]
    data = np.frombuffer(names.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    # The last weight is 0, so that bytes beyond the longest name add nothing.
    terms = _WEIGHTS[np.minimum(place, len(_WEIGHTS) - 1)] * (data.astype(np.uint64) + 1)
    # The running sum wraps modulo 2^64, and so do its differences, which are the sums per name.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    sums = running[starts + lengths] - running[starts]
    return _mixed(sums + lengths.astype(np.uint64) * _WEIGHTS[0])


def _mixed(digests: Digests) -> Digests:
    """The finish of splitmix64, a bijection that spreads every bit; a piece at a time, to need little memory."""
    mixed = np.empty_like(digests)
    for start in range(0, len(digests), _DIGESTS_AT_ONCE):
        some = digests[start : start + _DIGESTS_AT_ONCE]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            some = (some ^ (some >> np.uint64(shift))) * np.uint64(factor)
        mixed[start : start + _DIGESTS_AT_ONCE] = some ^ (some >> np.uint64(31))
    return mixed


def assign_splits(groups: Digests, classes: Codes, given: Codes, *, val_share: float) -> Codes:
    """A split for every row: the given one, else one drawn for its source video.

    Of each class, ``val_share`` of its source videos, and at least one when it has two, go to ``val``: those with
    the smallest digests. The others and all unlabelled ones go to ``train``. A source video that has rows with a
    given split follows the first of those, so that no draw parts its clips.

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
    """Which groups ``[G]`` (in the order of their digests) are held out: the first few of each class."""
    order = np.argsort(class_of_group, kind="stable")
    ordered = class_of_group[order]
    first = np.searchsorted(ordered, ordered)
    size = np.searchsorted(ordered, ordered, side="right") - first
    rank = np.arange(len(order)) - first
    wanted = np.where(size > 1, np.maximum(1, np.round(size * val_share)), 0) * (val_share > 0)
    is_val = np.zeros(len(order), np.bool_)
    is_val[order] = (rank < wanted) & (ordered >= 0)
    return is_val


def first_occurrences(digests: Digests) -> npt.NDArray[np.bool_]:
    """True on every row whose digest did not occur before."""
    order, is_new = _sorted(digests)
    first = np.empty(len(digests), np.bool_)
    first[order] = is_new
    return first


def _numbered_groups(groups: Digests) -> tuple[Codes, int]:
    """A number per row, equal for equal digests and ascending with them, and how many there are."""
    order, is_new = _sorted(groups)
    numbers = np.empty(len(groups), np.int32)
    numbers[order] = np.cumsum(is_new, dtype=np.int32) - 1
    return numbers, int(is_new.sum())


def _sorted(digests: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The stable ascending order, and whether each digest in it differs from the one before."""
    order = np.argsort(digests, kind="stable")
    in_order = digests[order]
    is_new = np.ones(len(digests), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=is_new[1:])
    return order, is_new


def _first_of_groups(codes: Codes, group_of_row: Codes, count: int) -> Codes:
    """The first code of each group's rows that is not -1 ``[G]``; -1 without one."""
    rows = np.flatnonzero(codes >= 0)[::-1]
    first = np.full(count, -1, np.int32)
    first[group_of_row[rows]] = codes[rows]
    return first
