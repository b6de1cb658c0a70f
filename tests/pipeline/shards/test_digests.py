"""Digests of prepared sets: of values, compared when they are read, not to be stripped or exchanged."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema import CLIP_SCHEMA
from pipeline.shards.digests import group_digest, shard_digest, version_digest
from pipeline.shards.index import read_shard_clips, write_index
from pipeline.shards.reader import PreparedSet, RowGroupReader, clip_index, open_prepared, read_whole_shard
from pipeline.storage.files import StorageError

CLIP = {
    "clip_id": 7, "uri": "s3://b/a.mp4", "start_seconds": 0.0, "end_seconds": 1.5, "label": None, "split": "train",
    "width": 96, "height": 64, "fps": 25.0, "num_frames": 37, "video": b"its bytes",
}  # fmt: skip


def clips(*changes: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([CLIP | change for change in changes], schema=CLIP_SCHEMA)


@pytest.fixture
def copy(prepared: PreparedSet, tmp_path: Path) -> Path:
    """A set of its own to tamper with."""
    shutil.copytree(prepared.uri, tmp_path / "set")
    return tmp_path / "set"


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    return record


def without_index(record: dict[str, Any]) -> dict[str, Any]:
    """As an older release wrote it."""
    return {name: value for name, value in record.items() if name != "index"}


def tampered(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write each shard again, with other values in the same row groups."""
    for shard in record_of(folder)["shards"]:
        path, start = folder / shard["file"], 0
        table = change(pq.read_table(path))
        with pq.ParquetWriter(path, table.schema) as writer:
            for rows in shard["row_groups"]:
                writer.write_table(table.slice(start, rows))
                start += rows


def with_label(table: pa.Table) -> pa.Table:
    number = table.column_names.index("label")
    return table.set_column(number, table.schema.field(number), pa.array(["other"] * len(table), pa.string()))


def read_all(prepared: PreparedSet) -> int:
    selection = prepared.selection("all")
    reader = RowGroupReader(selection)
    return sum(len(reader.clip(number)) for number in range(int(selection.first_clip[-1])))


def test_a_digest_is_of_values_not_of_their_layout() -> None:
    table = clips({}, {"clip_id": 8}, {"clip_id": 9, "video": None})
    digest = group_digest(table)
    assert group_digest(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == digest
    assert group_digest(pa.concat_tables([clips({}), table]).slice(1)) == digest
    for name, value in {"label": "", "uri": "s3://b/b.mp4", "end_seconds": 1.5000001, "video": b"its byteS"}.items():
        assert group_digest(clips({name: value}, {"clip_id": 8}, {"clip_id": 9, "video": None})) != digest, name
    assert group_digest(clips({"video": b"ab"}, {"video": b"c"})) != group_digest(
        clips({"video": b"a"}, {"video": b"bc"})
    )
    assert group_digest(clips({"video": b""})) != group_digest(clips({"video": None}))


def test_the_digest_of_a_version_is_of_content_and_order() -> None:
    shards = [{"sha256": "a", "uri": "x"}, {"sha256": "b", "uri": "y"}]
    digest = version_digest(shards, ["run"])
    assert version_digest([shard | {"uri": "moved"} for shard in shards], ("run",)) == digest
    assert version_digest(shards[::-1], ["run"]) != digest
    assert version_digest(shards, ["run", "jump"]) != digest


def test_a_set_as_it_was_prepared_can_be_read(copy: Path) -> None:
    prepared = open_prepared(str(copy))
    assert all(map(clip_index(prepared).digest, range(clip_index(prepared).groups)))
    assert read_all(prepared) == prepared.num_clips("all")
    assert sum(len(read_whole_shard(str(copy), shard)) for shard in record_of(copy)["shards"]) == read_all(prepared)
    tampered(copy, lambda table: table)  # other bytes of the file, the same values
    assert read_all(open_prepared(str(copy)))


@pytest.mark.parametrize("read", ["row groups", "whole shard"])
def test_other_values_are_refused_when_they_are_read(copy: Path, read: str) -> None:
    tampered(copy, with_label)
    whole = functools.partial(read_whole_shard, str(copy), record_of(copy)["shards"][0])
    groups = functools.partial(read_all, open_prepared(str(copy)))
    with pytest.raises(StorageError, match="row group 0 holds other clips than were prepared"):
        (whole if read == "whole shard" else groups)()


def test_other_videos_are_refused_when_they_are_read(copy: Path) -> None:
    def reversed_videos(table: pa.Table) -> pa.Table:
        return table.set_column(
            table.column_names.index("video"),
            table.schema.field("video"),
            table["video"].take(pa.array(np.arange(len(table))[::-1])),
        )

    tampered(copy, reversed_videos)
    with pytest.raises(StorageError, match="holds other clips than were prepared"):
        read_all(open_prepared(str(copy)))


def test_digests_cannot_be_stripped_or_exchanged(copy: Path) -> None:
    """The version's digest, which a run pins, covers them."""
    record = without_index(record_of(copy))
    first = record["shards"][0]

    def opened(**shard: Any) -> PreparedSet:
        changed = [{name: value for name, value in {**first, **shard}.items() if value is not None}]
        (copy / "dataset.json").write_text(json.dumps(record | {"shards": [*changed, *record["shards"][1:]]}))
        return open_prepared(str(copy))

    assert opened().digest == record["digest"]
    others = ["0" * 64] * len(first["digests"])
    for change in (
        {"digests": None},
        {"digests": others},
        {"digests": others, "sha256": shard_digest(others)},
        {"digests": first["digests"] + others},
        {"sha256": "0" * 64},
    ):
        with pytest.raises(StorageError, match="its digests contradict each other"):
            opened(**change)


def test_an_index_cannot_name_other_digests(copy: Path) -> None:
    """Neither exchanged nor stripped: they belong to the version's digest."""
    record = record_of(copy)
    shards = record["shards"]
    clips_of = {shard["file"]: read_shard_clips(str(copy / shard["file"])) for shard in shards}
    record["index"] = write_index(str(copy), "0001", shards, record["classes"], clips_of)
    path = copy / record["index"]["shards"]
    layout = pq.read_table(path)
    column = layout.column_names.index("digests")
    rows = layout["row_groups"].to_pylist()
    for others in ([["0" * 64] * len(groups) for groups in rows], [None] * len(rows)):
        changed = pa.array(others, layout.schema.field("digests").type)
        pq.write_table(layout.set_column(column, layout.schema.field("digests"), changed), path)
        index = record["index"] | {"shards_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        (copy / "dataset.json").write_text(json.dumps(record | {"index": index}))
        with pytest.raises(StorageError, match="its digests contradict each other"):
            read_all(open_prepared(str(copy)))


def test_a_shard_of_an_older_release_has_no_digests_and_is_read(copy: Path) -> None:
    record = without_index(record_of(copy))
    shards = [
        {name: value for name, value in (shard | {"sha256": "0" * 64}).items() if name != "digests"}
        for shard in record["shards"]
    ]
    digest = version_digest(shards, record["classes"])
    (copy / "dataset.json").write_text(json.dumps(record | {"shards": shards, "digest": digest}))
    prepared = open_prepared(str(copy))
    assert read_all(dataclasses.replace(prepared)) == prepared.num_clips("all")
