"""Few clips of many: their videos are read singly, and are the same bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema import CLIP_SCHEMA
from pipeline.shards import writer
from pipeline.shards.digests import group_digest
from pipeline.shards.row_groups import VIDEO_SPANS, OpenShard
from pipeline.shards.writer import write_shard
from pipeline.storage.files import StorageError

CLIPS, VIDEO_BYTES = 32, 2**16


def clip(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    return {
        "clip_id": number,
        "uri": f"{number}.mp4",
        "start_seconds": 0.0,
        "end_seconds": 1.0,
        "label": "a" if number % 8 == 0 else None,
        "split": "train",
        "width": 4,
        "height": 4,
        "fps": 25.0,
        "num_frames": 25,
        # Equal ones, empty ones and none at all are found like the others.
        "video": None if number % 16 == 3 else draw.randbytes(VIDEO_BYTES) if number % 16 > 1 else b"same" * number,
    }


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.Table.from_pylist([clip(number % 30) for number in range(CLIPS)], schema=CLIP_SCHEMA)


def shard(folder: Path, table: pa.Table) -> str:
    entry = write_shard(str(folder), "0.parquet", table, 8 * VIDEO_BYTES)
    assert len(entry["row_groups"]) > 2
    return str(folder / entry["file"])


@pytest.mark.parametrize("spans", [True, False])
def test_any_rows_are_those_of_the_whole(
    spans: bool, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not spans:  # as an earlier release wrote it
        monkeypatch.setattr(writer, "video_spans", lambda *_: {})
    uri = shard(tmp_path, table)
    metadata = pq.read_metadata(uri)
    assert (VIDEO_SPANS.encode() in metadata.metadata) == spans
    opened, first, draw = OpenShard(uri), 0, random.Random(1)
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).num_rows
        for count in range(1, size + 1):
            rows = np.sort(draw.sample(range(size), count))
            digest = group_digest(table.slice(first, size))
            read, _ = opened.read(number, rows, digest)
            assert read.to_pylist() == table.slice(first, size).take(pa.array(rows)).to_pylist()
            assert read.schema.equals(CLIP_SCHEMA)
        first += size


def test_one_clip_costs_its_own_bytes(table: pa.Table, tmp_path: Path) -> None:
    opened = OpenShard(shard(tmp_path, table))
    _, whole = opened.read(0, np.arange(opened._first_row[1]))
    _, single = opened.read(0, np.array([4]))
    assert VIDEO_BYTES < single < 1.1 * VIDEO_BYTES
    assert whole > 7 * single


def test_single_videos_are_compared_with_the_digest_of_their_row_group(table: pa.Table, tmp_path: Path) -> None:
    path = shard(tmp_path, table)
    digest = group_digest(table.slice(0, int(OpenShard(path)._first_row[1])))
    content = bytearray(Path(path).read_bytes())
    first, length = OpenShard(path)._spans[4].tolist()
    content[first + length // 2] ^= 1
    Path(path).write_bytes(content)
    opened = OpenShard(path)
    assert opened.read(0, np.array([5]), digest)[0]["clip_id"].to_pylist() == [5]  # another video is as it was
    for rows, expected in (([4], digest), ([5], "0" * 64)):
        with pytest.raises(StorageError, match="row group 0 holds other clips than were prepared"):
            opened.read(0, np.array(rows), expected)


def test_a_shard_that_is_cut_short_is_an_error(table: pa.Table, tmp_path: Path) -> None:
    opened = OpenShard(shard(tmp_path, table))
    with pytest.raises(OSError, match="0 bytes of 5"):
        opened._bytes(2**40, 5)


def test_without_every_span_there_are_none(table: pa.Table) -> None:
    assert writer.video_spans(b"something else", table["video"]) == {}
