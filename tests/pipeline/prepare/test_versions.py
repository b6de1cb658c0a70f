"""Records of versions: what they hold together, what they rejected, and that readers never see an older one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.prepare.chunk import VIDEO_SCHEMA
from pipeline.prepare.versions import (
    current_videos,
    kept_rejected,
    publish,
    read_rejected,
    read_versions,
    rejected_files,
    rejections,
    shards_of,
    times_rejected,
    version_counts,
)
from pipeline.schema import REJECTED_SCHEMA
from pipeline.storage.files import join, read_bytes, read_json, write_bytes
from pipeline.storage.parquet import write_table


def video(uri: str, status: str = "ok", clips: int = 1, **facts: Any) -> dict[str, Any]:
    return {"uri": uri, "status": status, "clips": clips, "stored_bytes": 0, "content_version": "1"} | facts


def record(output: str, version: int, chunk: int, videos: Sequence[dict[str, Any]], shards: Sequence[str] = ()) -> None:
    table = pa.Table.from_pylist(list(videos), schema=VIDEO_SCHEMA)
    table = table.replace_schema_metadata({"shards": json.dumps([shard(name) for name in shards])})
    write_table(join(output, "_prepare", f"v{version:04d}", "videos", f"{chunk:06d}.parquet"), table)


def shard(name: str) -> dict[str, Any]:
    return {"file": f"shards/{name}.parquet", "sha256": name, "rows": 1, "bytes": 1, "row_groups": [1]}


def reject(output: str, file: str, *rows: tuple[str, str]) -> str:
    rejected = [{"uri": uri, "reason": reason, "message": ""} for uri, reason in rows]
    write_table(join(output, file), pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA))
    return file


def rows(videos: pa.Table) -> list[tuple[str, str, str]]:
    return sorted(zip(*(videos[name].to_pylist() for name in ("uri", "content_version", "status")), strict=True))


def test_of_a_video_the_newest_record_counts(place: str) -> None:
    record(place, 1, 0, [video("a"), video("b")])
    record(place, 1, 1, [video("c", "corrupt", 0)])
    record(place, 2, 0, [video("b", "too_short", 0, content_version="2"), video("d")])
    assert rows(current_videos(place, 1)) == [("a", "1", "ok"), ("b", "1", "ok"), ("c", "1", "corrupt")]
    second = [("a", "1", "ok"), ("b", "2", "too_short"), ("c", "1", "corrupt"), ("d", "1", "ok")]
    assert rows(current_videos(place, 2)) == second
    assert current_videos(place, 0).schema.equals(VIDEO_SCHEMA)


def test_records_of_older_versions_may_lack_columns(tmp_path: Path) -> None:
    record(str(tmp_path), 2, 0, [video("b", trimmed_frames=3)])
    old = pa.Table.from_pylist([video("a")], schema=VIDEO_SCHEMA).drop_columns(["trimmed_frames"])
    write_table(str(tmp_path / "_prepare" / "v0001" / "videos" / "000000.parquet"), old)
    found = current_videos(str(tmp_path), 2).select(["uri", "trimmed_frames"]).to_pylist()
    assert {row["uri"]: row["trimmed_frames"] for row in found} == {"a": None, "b": 3}


def test_rejections_are_counted_by_content(tmp_path: Path) -> None:
    output = str(tmp_path)
    record(output, 1, 0, [video("a", "decoder_died", 0), video("b", "corrupt", 0)])
    record(output, 2, 0, [video("a", "decoder_died", 0)])
    record(output, 3, 0, [video("a", "decoder_died", 0, content_version="2")])
    assert times_rejected(output, 3, ["decoder_died"]) == {("a", "1"): 2, ("a", "2"): 1}
    assert times_rejected(output, 1, ["decoder_died", "corrupt"]) == {("a", "1"): 1, ("b", "1"): 1}


def test_shards_in_the_order_of_the_plan(tmp_path: Path) -> None:
    output = str(tmp_path)
    record(output, 1, 10, [video("c")], ["third"])
    record(output, 1, 2, [video("a")], ["first", "second"])
    assert [shard["sha256"] for shard in shards_of(output, 1)] == ["first", "second", "third"]


def test_rejections_of_a_split_and_before_any_split(tmp_path: Path) -> None:
    output = str(tmp_path)
    record(output, 1, 0, [
        video("a", split="val"), video("b", "corrupt", 0, split="val"), video("c", "corrupt", 0, split="train"),
        video("taken out", "corrupt", 0, split="val"),
    ])  # fmt: skip
    file = reject(
        output, "rejected/v0001-000000.parquet", ("b", "corrupt"), ("x", "no_label"), ("taken out", "excluded")
    )
    content = {"version": 1, "excluded": ["taken out"], "rejected": [file]}
    write_bytes(join(output, "versions", "0001.json"), json.dumps(content).encode())
    assert rejections(output, 1, "val") == ({"corrupt": 1}, {"no_label": 1})
    assert read_versions(output) == [content]


def test_what_the_parent_rejected_is_kept_but_for_what_was_looked_at_again(tmp_path: Path) -> None:
    output = str(tmp_path)
    whole = reject(output, "rejected/v0001-000000.parquet", ("a", "corrupt"))
    part = reject(output, "rejected/v0001-000001.parquet", ("b", "corrupt"), ("c", "corrupt"), ("d", "corrupt"))
    none = reject(output, "rejected/v0001-000002.parquet", ("e", "corrupt"))
    plan = reject(output, "rejected/v0001-plan.parquet", ("f", "no_label"))
    record(output, 2, 0, [video("c")])
    record(output, 2, 1, [video("e")])
    kept = kept_rejected(output, {"version": 2, "excluded": ["d"]}, [whole, part, none, plan])
    assert kept == [whole, "rejected/v0002-kept-000001.parquet"]
    assert read_rejected(output, kept)["uri"].to_pylist() == ["a", "b"]
    assert len(read_rejected(output, [part])) == 3  # files of the parent never change
    assert rejected_files(output, 1) == [whole, part, none]
    assert rejected_files(output, 2) == []


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_readers_never_go_back_to_an_older_version(order: tuple[int, int], place: str) -> None:
    versions = {1: {"version": 1, "classes": ["a"]}, 2: {"version": 2, "classes": ["a", "b"]}}
    for number in order:
        publish(place, versions[number])
        publish(place, versions[number])
    assert read_json(join(place, "dataset.json")) == versions[2]
    assert json.loads(read_bytes(join(place, "classes.json"))) == ["a", "b"]


def test_counts() -> None:
    facts = {"split": "train", "duration_seconds": 2.0, "bytes": 10, "trimmed_frames": 1, "damaged_frames": 2}
    videos = [
        video("a", clips=2, label="run", **facts),
        video("b", clips=1, label="jump", **facts | {"split": "val"}),
        video("c", clips=3, **facts),
        video("d", "corrupt", 0, label="jump", **facts),
    ]
    rejected = pa.Table.from_pylist(
        [{"uri": "d", "reason": "corrupt", "message": ""}, {"uri": "x", "reason": "a_reason", "message": ""}],
        schema=REJECTED_SCHEMA,
    )
    shards = [{"rows": 4, "bytes": 7}, {"rows": 2, "bytes": 5}]
    counts = version_counts(pa.Table.from_pylist(videos, schema=VIDEO_SCHEMA), rejected, shards, ["jump", "run"])
    assert counts == {
        "videos": 3, "clips": 6, "labelled_clips": 3, "clips_by_split": {"train": 5, "val": 1},
        "classes_without_training_clips": ["jump"], "seconds": 6.0, "source_bytes": 30, "stored_bytes": 12,
        "trimmed_frames": 3, "damaged_frames": 6,
        "rejected": {"a_reason": 1, "corrupt": 1},
    }  # fmt: skip
    empty = version_counts(VIDEO_SCHEMA.empty_table(), REJECTED_SCHEMA.empty_table(), [], ["run"])
    assert (empty["clips"], empty["seconds"], empty["labelled_clips"]) == (0, 0.0, 0)
