"""64-bit digests of millions of strings, a column at a time: seeded order, membership, duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.seeds import derive_seed

_ROWS_AT_ONCE = 4_000  # so that the arrays of a step stay in the processor's cache
_DIGESTS_AT_ONCE = 100_000
_LONGEST_NAME = 4096
Digests = npt.NDArray[np.uint64]


def _drawn_weights(seed: int | None) -> Digests:
    return np.append(np.random.default_rng(seed).integers(0, 2**64, _LONGEST_NAME, np.uint64), np.uint64(0))


_WEIGHTS, _PRIVATE_WEIGHTS = _drawn_weights(0), _drawn_weights(None)


def name_digests(names: pa.ChunkedArray | pa.Array) -> Digests:
    """A 64-bit digest per name ``[N]``, uniform, the same everywhere and always.

    Multilinear hashing (a random weight per byte position; Lemire and Kaser, "Strongly universal string hashing is
    fast", 2014) with splitmix64's finish. Not for secrets; 10 million names take seconds and no Python object each.
    Names beyond 4096 bytes differ by their first 4096 and their length.
    """
    return _weighted_digests(names, _WEIGHTS)


def private_digests(*columns: pa.ChunkedArray) -> Digests:
    """A 64-bit digest per row ``[N]`` of some columns of names, which holds in this process alone.

    Its weights are drawn at random, so nobody can upload two objects whose names have one digest.
    """
    digests = _weighted_digests(columns[0], _PRIVATE_WEIGHTS)
    for column in columns[1:]:
        digests = _mixed(digests) ^ _weighted_digests(column, _PRIVATE_WEIGHTS)
    return digests


def _weighted_digests(names: pa.ChunkedArray | pa.Array, weights: Digests) -> Digests:
    chunks = names.chunks if isinstance(names, pa.ChunkedArray) else [names]
    parts = [
        _digests_of(pc.cast(chunk.slice(start, _ROWS_AT_ONCE), pa.large_binary()), weights)
        for chunk in chunks
        for start in range(0, len(chunk), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def seeded(digests: Digests, seed: int, purpose: str) -> Digests:
    """New digests for one seed and purpose, independent of those for another."""
    # Two salted rounds: after one, a name's digest under one seed would be another name's under the next seed.
    salts = np.random.default_rng(derive_seed(seed, purpose)).integers(0, 2**64, 2, np.uint64)
    return _mixed(_mixed(digests ^ salts[0]) ^ salts[1])


def _digests_of(names: pa.LargeBinaryArray, weights: Digests) -> Digests:
    offsets = np.frombuffer(names.buffers()[1], np.int64)[names.offset : names.offset + len(names) + 1]
    data = np.frombuffer(names.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    position = np.arange(len(data)) - np.repeat(starts, lengths)
    # The last weight is 0, so that bytes beyond the longest name add nothing.
    terms = weights[np.minimum(position, len(weights) - 1)] * (data.astype(np.uint64) + 1)
    # The running sum wraps modulo 2^64, and so do its differences, which are the sums per name.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    sums = running[starts + lengths] - running[starts]
    return _mixed(sums + lengths.astype(np.uint64) * weights[0])


def _mixed(digests: Digests) -> Digests:
    """The finish of splitmix64, a bijection that spreads every bit; a piece at a time, to need little memory."""
    mixed = np.empty_like(digests)
    for start in range(0, len(digests), _DIGESTS_AT_ONCE):
        some = digests[start : start + _DIGESTS_AT_ONCE]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            some = (some ^ (some >> np.uint64(shift))) * np.uint64(factor)
        mixed[start : start + _DIGESTS_AT_ONCE] = some ^ (some >> np.uint64(31))
    return mixed


def first_occurrences(digests: Digests) -> npt.NDArray[np.bool_]:
    """True on every row whose digest did not occur before."""
    order, is_new = sort_digests(digests)
    first = np.empty(len(digests), np.bool_)
    first[order] = is_new
    return first


def sort_digests(digests: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The stable ascending order, and whether each digest in it differs from the one before."""
    order = np.argsort(digests, kind="stable")
    in_order = digests[order]
    is_new = np.ones(len(digests), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=is_new[1:])
    return order, is_new


def positions(wanted: npt.NDArray[Any], ordered: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where each number stands in an ascending array, -1 where absent; unlike `numpy.isin` without copies. [wanted]"""
    if not len(ordered):
        return np.full(len(wanted), -1, np.int64)
    nearest = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[nearest] == wanted, nearest, -1)
