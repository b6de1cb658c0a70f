"""What a prepared set holds, and which clips balancing adds. No Ray."""

from __future__ import annotations

import dataclasses

from pipeline.shards.reader import PreparedSet
from tests.support.small_set import VIEW


def test_without_balance_nothing_changes(prepared: PreparedSet) -> None:
    plain, balanced = prepared.selection("train"), prepared.selection("train", balance_classes=True)
    assert not any(plain.copy(group) for group in range(len(plain.clips_per_group)))
    assert dataclasses.replace(VIEW).balance_classes is False
    assert plain.first_clip[-1] == plain.clips_per_group.sum() == 10
    assert balanced.first_clip[-1] == balanced.clips_per_group.sum() == 3 + 9  # three have no label
