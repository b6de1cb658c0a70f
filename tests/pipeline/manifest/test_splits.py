"""Splits that never separate the clips of one source video."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import name_digests, seeded
from pipeline.manifest.splits import SPLITS, VAL, assign_splits


def digests(values: list[str]) -> np.ndarray:
    return name_digests(pa.array(values, pa.large_string()))


rows = st.lists(
    st.tuples(st.integers(0, 15), st.integers(-1, 3), st.sampled_from([-1, -1, -1, 0, 1, 2])), min_size=1, max_size=80
)


@settings(deadline=None)
@given(rows, st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 3))
def test_splits(drawn: list[tuple[int, int, int]], val_share: float, seed: int) -> None:
    """Given splits stay; without any, a source video is never divided, and every class that can has some in val."""
    groups, classes, given_splits = (np.array(column) for column in zip(*drawn, strict=True))
    found = assign_splits(
        seeded(digests([f"g{group}" for group in groups]), seed, "split"),
        classes.astype(np.int32),
        given_splits.astype(np.int32),
        val_share=val_share,
    )
    assert (found[given_splits >= 0] == given_splits[given_splits >= 0]).all()
    assert set(found) <= set(range(len(SPLITS)))
    drawn_rows = defaultdict(set)
    for group, split, fixed in zip(groups, found, given_splits, strict=True):
        if fixed < 0:
            drawn_rows[group].add(split)
    assert all(len(splits) == 1 for splits in drawn_rows.values())
    if (given_splits < 0).all() and val_share == 0:
        assert (found != VAL).all()
    if (given_splits < 0).all() and val_share > 0:
        first_class = {}
        for group, label in zip(groups, classes, strict=True):
            if label >= 0:
                first_class.setdefault(group, label)
        for label in set(first_class.values()):
            of_class = [group for group, first in first_class.items() if first == label]
            in_val = sum(VAL in drawn_rows[group] for group in of_class)
            assert in_val == (max(1, round(len(of_class) * val_share)) if len(of_class) > 1 else 0)


def test_unlabelled_videos_train() -> None:
    nothing = np.full(100, -1, np.int32)
    found = assign_splits(np.arange(100, dtype=np.uint64), nothing, nothing, val_share=0.5)
    assert (found != VAL).all()
