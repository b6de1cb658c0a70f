"""Writing a prepared set's shards: clips gathered, shuffled, in row groups of a few MiB."""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import seeded
from pipeline.schema import CLIP_SCHEMA
from pipeline.shards.digests import group_digest, shard_digest, video_digests
from pipeline.shards.index import ShardClips
from pipeline.shards.row_groups import VIDEO_DIGESTS, VIDEO_SPANS
from pipeline.storage.files import join, write_bytes
from pipeline.storage.parquet import parquet_bytes


@dataclasses.dataclass(frozen=True)
class StoreConfig:
    """How clips are laid out in Parquet."""

    videos_per_chunk: int | None = None
    """Videos that one worker handles between two records of progress. Default: 4 to 256, by the number of videos."""
    row_group_bytes: int = 4 * 2**20
    """A row group is closed when its videos reach this many bytes; it is what training reads at once."""
    shard_bytes: int = 128 * 2**20
    """A shard is closed when its videos reach this many bytes; a worker holds one in memory."""

    def __post_init__(self) -> None:
        for name in ("videos_per_chunk", "row_group_bytes", "shard_bytes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive; leave it out for the default")


class ShardWriter:
    """Collects clips and writes them, in an order drawn from the seed, as one shard whenever there are enough."""

    def __init__(self, output: str, name: str, store: StoreConfig, seed: int) -> None:
        """``name`` is what the shards' file names begin with."""
        self.output = output
        self.name = name
        self.store = store
        self.seed = seed
        self.written: list[dict[str, Any]] = []
        self.clips: list[ShardClips] = []
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(row["video"] or b"")
        if self._bytes >= self.store.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self._rows:
            return
        ids = np.array([row["clip_id"] for row in self._rows], np.uint64)
        order = np.argsort(seeded(ids, self.seed, "shard"), kind="stable")
        table = pa.Table.from_pylist([self._rows[index] for index in order], schema=CLIP_SCHEMA)
        name = f"{self.name}-{len(self.written):02d}.parquet"
        self.written.append(write_shard(self.output, name, table, self.store.row_group_bytes))
        self.clips.append(ShardClips.of(table))
        self._rows, self._bytes = [], 0


def write_shard(output: str, name: str, table: pa.Table, row_group_bytes: int) -> dict[str, Any]:
    """Write clips (`CLIP_SCHEMA`) as ``shards/<name>``; its entry for ``dataset.json``."""
    lengths = pc.fill_null(pc.binary_length(table["video"]), 0).to_pylist()
    groups = row_groups(lengths, row_group_bytes)
    starts = itertools.accumulate(groups, initial=0)
    tables = [table.slice(start, rows) for start, rows in zip(starts, groups, strict=False)]
    digests = [group_digest(one) for one in tables]
    data = parquet_bytes(
        tables,
        CLIP_SCHEMA,
        # Videos do not compress, and labels repeat.
        compression={field.name: "NONE" if field.name == "video" else "ZSTD" for field in CLIP_SCHEMA},
        use_dictionary=["label", "split"],
        write_statistics=["clip_id"],
        footer=lambda content: video_spans(content, table["video"]),
    )
    write_bytes(join(output, "shards", name), data)
    return {
        "file": f"shards/{name}",
        "rows": len(table),
        "row_groups": groups,
        "bytes": len(data),
        "digests": digests,
        "sha256": shard_digest(digests),
    }


def video_spans(content: bytes, videos: pa.ChunkedArray) -> dict[str, str]:
    """Where the bytes of each video lie in a Parquet file, so that one can be read alone; nothing if one is not found.

    They lie there as they are, because the column is neither compressed nor encoded by a dictionary, each after its
    length. A null has the span [0, -1].
    """
    spans, position = [], 0
    for value in videos:
        if not value.is_valid:
            spans.append([0, -1])
            continue
        video = value.as_py()
        position = content.find(struct.pack("<i", len(video)) + video, position) + 4
        if position < 4:
            return {}
        spans.append([position, len(video)])
        position += len(video)
    return {VIDEO_SPANS: json.dumps(spans), VIDEO_DIGESTS: json.dumps(video_digests(videos))}


def row_groups(lengths: list[int], row_group_bytes: int) -> list[int]:
    """Rows of each row group: closed as soon as its videos reach ``row_group_bytes``."""
    groups, rows, size = [], 0, 0
    for length in lengths:
        rows, size = rows + 1, size + length
        if size >= row_group_bytes:
            groups.append(rows)
            rows, size = 0, 0
    return [*groups, rows] if rows else groups
