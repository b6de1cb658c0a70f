"""Class-balanced sampling: every class as often as the largest, every copy with draws of its own. No Ray."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.reader import PreparedSet, times_to_balance
from tests.support.small_set import VIEW


@given(st.lists(st.integers(-1, 4), max_size=60))
def test_every_class_comes_as_often_as_the_largest(labels: list[int]) -> None:
    times = times_to_balance(np.array(labels, np.int64))
    totals = Counter[int]()
    for label, count in zip(labels, times.tolist(), strict=True):
        totals[label] += count
    largest = max((labels.count(label) for label in set(labels) - {-1}), default=0)
    assert {totals[label] for label in set(labels) - {-1}} <= {largest}
    assert totals[-1] == labels.count(-1)
    for label in set(labels):
        counts = [count for own, count in zip(labels, times.tolist(), strict=True) if own == label]
        assert max(counts) - min(counts) <= 1


def test_without_balance_nothing_changes(prepared: PreparedSet) -> None:
    plain, balanced = prepared.selection("train"), prepared.selection("train", balance_classes=True)
    assert not plain.copies.any()
    assert dataclasses.replace(VIEW).balance_classes is False
    assert len(plain.rows) == plain.clips_per_group.sum() == 10
    assert len(balanced.rows) == balanced.clips_per_group.sum() == 3 + 9  # three have no label
