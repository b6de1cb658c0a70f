"""Reading the tables of an output, and the numbers that a source is compared with."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage.errors import StorageError
from pipeline.tagging.reader import KnownVideos, TagSnapshot, content_keys_of, read_tags, read_videos, uri_keys_of
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from pipeline.tagging.windows import video_id
from tests.support.tag_output import commit


@pytest.fixture
def output(tmp_path: Path) -> str:
    commit(str(tmp_path), ("a", "1", "ok"), ("b", "2", "corrupt"))
    commit(str(tmp_path), ("d", "1", "unreadable"))
    return str(tmp_path)


def test_columns_or_all_of_them(output: str) -> None:
    assert read_tags(output).schema.names == tag_schema().names
    assert read_videos(output).schema.names == VIDEO_SCHEMA.names
    tags = read_tags(output, ["uri", "status"])
    assert tags.column_names == ["uri", "status"]
    assert sorted(zip(*tags.to_pydict().values(), strict=True)) == [
        ("a", "ok"), ("a", "ok"), ("b", "corrupt"), ("d", "unreadable"),
    ]  # fmt: skip


def test_an_older_snapshot_by_version(output: str) -> None:
    assert sorted(read_videos(output, ["uri"], as_of=1)["uri"].to_pylist()) == ["a", "b"]
    with pytest.raises(StorageError, match="99"):
        read_tags(output, as_of=99)


def test_an_older_snapshot_by_time(output: str) -> None:
    time.sleep(0.02)
    then = datetime.now(UTC).isoformat()
    time.sleep(0.02)
    commit(output, ("e", "1", "ok"))
    assert len(read_videos(output, as_of=then)) == 3
    assert len(read_videos(output)) == 4


def test_files_that_no_commit_names_are_not_read(output: str) -> None:
    """A job that died before its commit has left them."""
    (Path(output) / "videos" / "left.parquet").write_bytes(b"half")
    assert len(read_videos(output)) == 3


def test_an_output_without_tables(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no committed tags; run `python -m jobs\.tag`"):
        read_tags(str(tmp_path))
    known = KnownVideos(str(tmp_path))
    assert len(known) == 0
    assert known.ids_of(np.array([5])).tolist() == [-1]


def test_known_videos_are_what_a_source_is_compared_with(output: str) -> None:
    known = KnownVideos(output)
    everything = uri_keys_of(pa.chunked_array([["a", "b", "c", "d"]]))
    assert np.isin(everything, known.uri_keys).tolist() == [True, True, False, True]
    videos = [("a", "1"), ("b", "1"), ("b", "2"), ("d", "1")]
    ids = [video_id(*video) for video in videos]
    contents = content_keys_of(pa.table(list(map(pa.array, zip(*videos, strict=True))), ["uri", "content_version"]))
    settled = [True, False, True, False]  # the content of b stays corrupt; d may be readable tomorrow
    assert np.isin(contents, known.settled_keys).tolist() == settled
    assert known.ids_of(everything).tolist() == [ids[0], ids[2], -1, ids[3]]
    rows = known.rows(everything[:2]).to_pylist()
    assert sorted((row["uri"], row["content_version"]) for row in rows) == [("a", "1"), ("b", "2")]


def test_a_snapshot_is_read_file_by_file(output: str) -> None:
    snapshot = TagSnapshot(output)
    assert (len(snapshot), snapshot.version, snapshot.has_embeddings) == (4, 2, False)
    assert snapshot.settings == {"weights_digest": "abc"}
    parts = [snapshot.part(file, ["uri"])["uri"].to_pylist() for file in snapshot.files()]
    assert sorted(parts) == [["a", "a", "b"], ["d"]]
    assert len(TagSnapshot(output, as_of=1)) == 3
