"""What a prepared set holds, and which clips balancing adds. No Ray."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from pipeline.shards.reader import PreparedSet, RowGroupReader
from pipeline.storage.files import StorageError
from tests.support.small_set import VIEW


def test_without_balance_nothing_changes(prepared: PreparedSet) -> None:
    plain, balanced = prepared.selection("train"), prepared.selection("train", balance_classes=True)
    assert not any(plain.copy(group) for group in range(len(plain.clips_per_group)))
    assert dataclasses.replace(VIEW).balance_classes is False
    assert plain.first_clip[-1] == plain.clips_per_group.sum() == 10
    assert balanced.first_clip[-1] == balanced.clips_per_group.sum() == 3 + 9  # three have no label


def test_a_clip_of_a_cached_group_looks_at_no_other_group(prepared: PreparedSet) -> None:
    """Adding up the cache for every clip took longer than decoding an image."""
    reader = RowGroupReader(prepared.selection("train"))
    ids = [reader.clip(clip)["clip_id"][0].as_py() for clip in range(10)]
    assert len(reader._groups) > 2
    with mock.patch.object(Future, "done", side_effect=AssertionError):
        assert [reader.clip(clip)["clip_id"][0].as_py() for clip in range(10)] == ids


class SlowSize(int):
    """A number that lets other threads in while it is added."""

    def __radd__(self, other: int) -> int:
        time.sleep(0.02)
        return int(self) + other


def test_readings_side_by_side_are_all_counted(prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(uri: str, read_file: Callable[..., tuple[pa.Table, int]], _remedy: str) -> tuple[pa.Table, int]:
        return read_file(None, uri)[0], SlowSize(1)

    monkeypatch.setattr("pipeline.shards.reader.read_by_arrow", read)
    reader = RowGroupReader(prepared.selection("train"))
    reader.prefetch(range(10))
    for clip in range(10):
        reader.clip(clip)
    assert reader.bytes_read == reader._readings == np.count_nonzero(reader.selection.clips_per_group) > 2


def test_a_group_that_could_not_be_read_is_read_again(prepared: PreparedSet) -> None:
    reader = RowGroupReader(prepared.selection("train"), cache_bytes=1)
    expected = [reader.clip(clip) for clip in range(10)]
    reader = RowGroupReader(prepared.selection("train"), cache_bytes=1)
    with (
        mock.patch.object(reader, "_read", side_effect=StorageError("uri", "is gone", "bring it back")),
        pytest.raises(StorageError, match="is gone"),
    ):
        reader.clip(0)
    for clip, row in enumerate(expected):
        assert reader.clip(clip).equals(row)
        assert len(reader._groups) <= 3
