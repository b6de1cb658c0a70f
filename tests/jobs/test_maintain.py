"""Tables are compacted, cleaned, and made of the layout of older releases. No Ray."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.core.errors import UserError
from jobs.maintain import MaintainConfig, run
from jobs.tagging.job_log import working_on
from pipeline.storage.files import StorageError
from pipeline.tagging.old_layout import holds_old_layout
from pipeline.tagging.reader import KnownVideos, read_tags, read_videos
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from pipeline.tagging.tables import open_tables
from pipeline.tagging.windows import video_id
from tests.support.tag_output import commit, written


def test_small_files_are_joined_and_old_ones_deleted(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    for number in range(5):
        commit(output, (f"v{number}", "1", "ok"))
    written(output, [("lost", "1", "ok")])  # by a job that died before its commit
    for path in tmp_path.rglob("*.parquet"):
        os.utime(path, (time.time() - 1e6, time.time() - 1e6))
    before = read_tags(output).sort_by([("uri", "ascending"), ("window_index", "ascending")])
    report = run(MaintainConfig(output=output))
    assert (report["rows"], report["videos"]) == (10, 5)
    assert (report["files_before"], report["files"]) == (10, 2)
    assert report["files_deleted"] == 2  # those that were just joined stay for a week
    assert read_tags(output).sort_by([("uri", "ascending"), ("window_index", "ascending")]) == before
    assert len(read_videos(output, as_of=3)) == 3
    assert run(MaintainConfig(output=output, keep_hours=0))["files_deleted"] == 10
    assert len(list(tmp_path.rglob("out/*/*.parquet"))) == 2
    with pytest.raises(StorageError):
        read_videos(output, as_of=3)
    commit(output, ("more", "1", "ok"))
    assert len(read_videos(output)) == 6


def test_nobody_tags_meanwhile_and_mistakes_are_named(tmp_path: Path) -> None:
    commit(str(tmp_path), ("a", "1", "ok"))
    with working_on(str(tmp_path)), pytest.raises(UserError, match="another job is working on it"):
        run(MaintainConfig(output=str(tmp_path)))
    with pytest.raises(UserError, match="holds no tags; give an output of tag"):
        run(MaintainConfig(output=str(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match="leave out convert=true"):
        run(MaintainConfig(output=str(tmp_path), convert=True))
    with pytest.raises(ValueError, match="target_mib=0: must be at least 1"):
        MaintainConfig(output="o", target_mib=0)


def _old_rows(schema: pa.Schema, version: int, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an older release wrote them: with a version, and in `tags` without what only `videos` had."""
    fields = [
        field for field in schema if field.name not in ("content_version", "weights_digest", "run_id", "embedding")
    ]
    if schema == VIDEO_SCHEMA:
        fields = list(schema)
    elif "embedding" in schema.names:
        fields.append(pa.field("embedding", pa.list_(pa.float32(), 2)))
    empty: dict[pa.DataType, Any] = {pa.string(): "", pa.int64(): 0, pa.float64(): 0.0}
    own = pa.schema([*fields, pa.field("version", pa.int64())])
    filled = [{f.name: row.get(f.name, empty.get(f.type, [])) for f in own} | {"version": version} for row in rows]
    return pa.Table.from_pylist(filled, schema=own)


def _old_output(output: Path) -> None:
    """Two versions: `a` is tagged, `b` changed in the second, `c` was deleted there, a window of `d` failed."""
    tags, videos = [], []
    versions = [
        [("a", "1", "ok"), ("b", "1", "ok"), ("c", "1", "ok")],
        [("b", "2", "ok"), ("c", "1", "deleted"), ("d", "1", "timeout")],
    ]
    for version, listed in enumerate(versions):
        rows = [
            {
                "uri": uri,
                "video_id": video_id(uri, content),
                "content_version": content,
                "status": status,
                "run_id": "r",
            }
            | {"labels": [f"of {version}"], "scores": [0.5], "embedding": [1.0, 2.0] if status == "ok" else [0.0, 0.0]}
            | {"error_class": None if status == "ok" else status, "weights_digest": "abc", "run_key": "key"}
            for uri, content, status in listed
        ]
        for folder, schema, names in (("tags", tag_schema(embeddings=True), tags), ("videos", VIDEO_SCHEMA, videos)):
            names.append(f"{folder}/{version:06d}.parquet")
            (output / folder).mkdir(parents=True, exist_ok=True)
            pq.write_table(_old_rows(schema, version, rows), output / names[-1])
    for folder, name, content in (
        ("units", "000000.parquet", ""), ("_begun/000000", "000001.json", "{}"), ("generations", "00000001.json", "{}"),
        ("_commits", "1.json", {"version": 1, "tags": tags, "videos": videos,
                                "settings": {"weights_digest": "abc", "embedding_size": 2}}),
    ):  # fmt: skip
        (output / folder).mkdir(parents=True)
        (output / folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_an_older_release_s_snapshot_becomes_tables(tmp_path: Path) -> None:
    output = str(tmp_path)
    _old_output(tmp_path)
    with pytest.raises(UserError, match="add convert=true"):
        run(MaintainConfig(output=output))
    report = run(MaintainConfig(output=output, convert=True))
    assert (report["rows"], report["videos"]) == (3, 3)
    tags = {row["uri"]: row for row in read_tags(output).to_pylist()}
    assert {uri: (row["content_version"], row["labels"], row["run_id"]) for uri, row in tags.items()} == {
        "a": ("1", ["of 0"], "r"), "b": ("2", ["of 1"], "r"), "d": ("1", ["of 1"], "r"),
    }  # fmt: skip
    assert [tags[uri]["embedding"] for uri in "abd"] == [[1.0, 2.0], [1.0, 2.0], None]
    assert {row["weights_digest"] for row in tags.values()} == {"abc"}
    assert sorted(read_videos(output)["uri"].to_pylist()) == ["a", "b", "d"]
    tables = open_tables(output)
    assert tables is not None
    assert tables.settings == {"weights_digest": "abc", "embedding_size": 2}
    assert len(KnownVideos(output)) == 3
    assert not holds_old_layout(output)
    assert run(MaintainConfig(output=output, keep_hours=0))["files_deleted"] >= 4  # the old files
    assert len(read_tags(output)) == 3


def test_a_conversion_that_was_cut_off_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _old_output(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.maintain.remove_old_layout", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(MaintainConfig(output=str(tmp_path), convert=True))
    assert run(MaintainConfig(output=str(tmp_path), convert=True))["rows"] == 3
