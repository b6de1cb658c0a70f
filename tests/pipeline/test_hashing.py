"""Digests of names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import name_digests, seeded

names = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=40)


def digests(values: list[str]) -> np.ndarray:
    return name_digests(pa.array(values, pa.large_string()))


@settings(deadline=None)
@given(names)
def test_equal_names_have_equal_digests_and_others_do_not(values: list[str]) -> None:
    found = digests(values)
    by_name = dict(zip(values, found.tolist(), strict=True))
    assert [by_name[value] for value in values] == found.tolist()
    assert len(set(by_name.values())) == len(by_name)


@settings(deadline=None)
@given(names, st.integers(0, 5), st.integers(1, 7))
def test_chunks_and_slices_do_not_matter(values: list[str], skip: int, step: int) -> None:
    whole = digests(values)[skip:]
    sliced = name_digests(pa.array(values, pa.large_string()).slice(skip))
    chunks = [pa.array(values[start : start + step], pa.string()) for start in range(skip, len(values), step)]
    assert sliced.tolist() == whole.tolist()
    assert name_digests(pa.chunked_array(chunks, pa.string())).tolist() == whole.tolist()


def test_digests_are_the_same_everywhere() -> None:
    """Orders and splits hang on them: a change would reshuffle every set that exists."""
    found = seeded(digests(["s3://bucket/a.mp4", ""]), 3, "order")
    assert found.tolist() == [9772804954972970363, 4683839147656803135]


def test_digests_spread_evenly() -> None:
    found = seeded(digests([f"video_{number}.mp4" for number in range(20_000)]), 0, "order")
    for shift in (0, 20, 40, 60):
        counts = np.bincount((found >> np.uint64(shift)).astype(np.int64) & 15, minlength=16)
        assert counts.min() > 1250 - 5 * 35
        assert counts.max() < 1250 + 5 * 35


def test_long_names_count_to_the_last_byte_of_their_length() -> None:
    assert len(set(digests(["x" * 5000, "x" * 5001, "x" * 4095 + "y" + "x" * 904]).tolist())) == 3
