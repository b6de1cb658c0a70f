"""Digests of names: equal for equal names, the same everywhere, evenly spread."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import first_occurrences, name_digests, positions, private_digests, seeded, sort_digests

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
    assert found.tolist() == [2422494474730377132, 9589257331408065160]


def test_digests_spread_evenly() -> None:
    found = seeded(digests([f"video_{number}.mp4" for number in range(20_000)]), 0, "order")
    for shift in (0, 20, 40, 60):
        counts = np.bincount((found >> np.uint64(shift)).astype(np.int64) & 15, minlength=16)
        assert counts.min() > 1250 - 5 * 35
        assert counts.max() < 1250 + 5 * 35


def test_long_names_count_to_the_last_byte_of_their_length() -> None:
    assert len(set(digests(["x" * 5000, "x" * 5001, "x" * 4095 + "y" + "x" * 904]).tolist())) == 3


@settings(deadline=None)
@given(names)
def test_first_occurrences_and_order(values: list[str]) -> None:
    found = digests(values)
    assert first_occurrences(found).tolist() == [values.index(value) == row for row, value in enumerate(values)]
    order, is_new = sort_digests(found)
    assert found[order].tolist() == sorted(found.tolist())
    assert is_new.sum() == len(set(values))


def test_digests_of_another_seed_or_purpose_are_others() -> None:
    plain = digests([f"video_{number}.mp4" for number in range(1000)])
    found = [seeded(plain, 0, "order"), seeded(plain, 1, "order"), seeded(plain, 0, "split")]
    assert len(np.unique(np.concatenate(found))) == 3000


@given(st.lists(st.integers(-5, 25)), st.lists(st.integers(0, 20), unique=True))
def test_positions_are_those_of_list_index(wanted: list[int], known: list[int]) -> None:
    ordered = sorted(known)
    expected = [ordered.index(number) if number in ordered else -1 for number in wanted]
    assert positions(np.array(wanted, np.int64), np.array(ordered, np.int64)).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_private_digests_are_of_all_columns_in_their_order(rows: list[tuple[str, str]]) -> None:
    first, second = (pa.chunked_array([column]) for column in zip(*rows, strict=True))
    found = private_digests(first, second).tolist()
    assert len(set(found)) == len(set(zip(found, rows, strict=True))) == len(set(rows))
    assert private_digests(first).tolist() != name_digests(first).tolist()
