"""Indexes that are made up, for tests of what is chosen from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.shards.index import ClipIndex


def made_up_index(
    sizes: Sequence[int], labels: Sequence[int], splits: Sequence[int], classes: int, names: tuple[str, ...]
) -> ClipIndex:
    """Row groups of these sizes, three of them a shard.

    Args:
        labels, splits: of each clip, -1 for none.
        names: of the splits.
    """
    label, split = np.array(labels, np.int32), np.array(splits, np.int16)
    counts = np.zeros((len(names) + 1, classes + 1), np.int64)
    np.add.at(counts, (split + 1, label + 1), 1)
    shards = np.arange(0, len(sizes) + 3, 3).clip(max=len(sizes))
    return ClipIndex(
        label=label,
        split=split,
        group_start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        shard_start=np.unique(shards),
        files=np.array([f"shards/{number}.parquet".encode() for number in range(len(shards))]),
        digests=np.full(len(sizes), b""),
        counts=counts,
        splits=names,
        source=lambda: made_up_index(sizes, labels, splits, classes, names),
    )
