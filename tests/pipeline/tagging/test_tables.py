"""Transactions over both tables: whole or not at all, one writer, and no old rows beside the new ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.storage.delta import Change, ConflictError, Table
from pipeline.tagging.reader import read_tags, read_videos
from pipeline.tagging.schema import TAGS, VIDEO_SCHEMA, VIDEOS, tag_schema
from pipeline.tagging.tables import Changes, TagTables, create_tables, open_tables, rewritten, total
from pipeline.tagging.windows import video_id
from tests.support.tag_output import SETTINGS, commit, written

A, B, C = (("a", "1", "ok"), ("b", "1", "ok"), ("c", "1", "corrupt"))


class DiedError(Exception):
    """Stands for a SIGKILL at a certain step."""


@pytest.fixture
def output(tmp_path: Path) -> str:
    commit(str(tmp_path), A, B)
    return str(tmp_path)


def _uris(output: str) -> tuple[list[str], list[str]]:
    return sorted(set(read_tags(output)["uri"].to_pylist())), sorted(read_videos(output)["uri"].to_pylist())


def test_what_all_rows_have_in_common_is_kept(output: str) -> None:
    tables = open_tables(output)
    assert tables is not None
    assert tables.settings == SETTINGS
    assert create_tables(output, {"weights_digest": "another"}).settings == SETTINGS
    assert open_tables(f"{output}/nothing") is None


def test_of_two_writers_one_commits(output: str) -> None:
    first, second = open_tables(output), open_tables(output)
    assert first is not None
    assert second is not None
    first.commit(written(output, [C]), {})
    with pytest.raises(ConflictError, match="another writer has committed meanwhile"):
        second.commit(written(output, [("z", "1", "ok")]), {})
    assert _uris(output) == (["a", "b", "c"], ["a", "b", "c"])
    first.commit(written(output, [("d", "1", "ok")]), {})
    assert _uris(output)[0] == ["a", "b", "c", "d"]


def test_a_fence_shuts_out_a_writer_that_was_cut_off(output: str) -> None:
    cut_off, follower = open_tables(output), open_tables(output)
    assert cut_off is not None
    assert follower is not None
    follower.fence()
    with pytest.raises(ConflictError):
        cut_off.commit(written(output, [C]), {})
    follower.commit(written(output, [C]), {})
    assert _uris(output)[1] == ["a", "b", "c"]


def _replaced(output: str, tables: TagTables) -> Changes:
    """`b` has other content now: its new rows, and the files without the old ones."""
    files = tables.to_rewrite(pa.chunked_array([["b"]]))
    assert {file.table for file in files} == {TAGS, VIDEOS}
    ids, schemas = np.array([video_id("b", "1")]), {TAGS: tag_schema(), VIDEOS: VIDEO_SCHEMA}
    old = {file.table: rewritten(output, file, ids, schemas[file.table]) for file in files}
    return total([written(output, [("b", "2", "ok")]), Changes(old[TAGS] or Change(), old[VIDEOS] or Change())])


def test_old_rows_leave_with_the_commit_that_brings_the_new_ones(output: str) -> None:
    tables = open_tables(output)
    assert tables is not None
    assert tables.to_rewrite(pa.chunked_array([["c", "d"]])) == []  # by the bounds in the log
    tables.commit(_replaced(output, tables), {})
    for rows in (read_tags(output), read_videos(output)):
        assert set(zip(rows["uri"].to_pylist(), rows["content_version"].to_pylist(), strict=True)) == {
            ("a", "1"), ("b", "2"),
        }  # fmt: skip
    assert len(read_tags(output, as_of=1)) == 4
    assert set(read_tags(output, as_of=1)["content_version"].to_pylist()) == {"1"}


def test_a_file_that_holds_none_of_the_rows_stays(output: str) -> None:
    tables = open_tables(output)
    assert tables is not None
    file, _ = tables.to_rewrite(pa.chunked_array([["b"]]))
    assert rewritten(output, file, np.array([1, 2]), tag_schema()) is None
    everything = np.sort([video_id(uri, "1") for uri in "ab"])
    assert rewritten(output, file, everything, tag_schema()) == Change((), (file.path,))


@pytest.mark.parametrize("allowed", range(5))
def test_a_kill_at_any_step_of_a_transaction(output: str, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a file, before a commit or between the two: the next job finds the transaction whole, or nothing of it."""
    steps = 0

    def dying(work: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > allowed:
                raise DiedError
            return work(*arguments, **options)

        return maybe

    tables = open_tables(output)
    assert tables is not None
    with monkeypatch.context() as patch:
        patch.setattr(Table, "commit", dying(Table.commit))
        patch.setattr("tests.support.tag_output.write_data_file", dying(written.__globals__["write_data_file"]))
        try:
            tables.commit(_replaced(output, tables), {})
        except DiedError:
            assert allowed < 4
    follower = open_tables(output)
    assert follower is not None
    follower.finish()
    assert follower.tags.transaction == follower.videos.transaction
    found = {
        tuple(sorted(set(rows["content_version"].to_pylist()))) for rows in (read_tags(output), read_videos(output))
    }
    assert found == {("1", "2") if allowed >= 3 else ("1",)}
    if allowed < 3:
        follower.commit(_replaced(output, follower), {})
    assert sorted(read_videos(output)["content_version"].to_pylist()) == ["1", "2"]
    assert len(read_tags(output)) == 4


def test_opening_writes_nothing_while_a_job_is_between_its_two_commits(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run looks at an output at which a job is at work, and may have no right to write there."""
    commit_to, seen = Table.commit, []

    def watched(table: Table, *arguments: Any) -> None:
        commit_to(table, *arguments)
        found = open_tables(output)
        assert found is not None
        seen.append((found.tags.transaction, found.videos.transaction))

    job = open_tables(output)
    assert job is not None
    monkeypatch.setattr(Table, "commit", watched)
    job.commit(written(output, [C]), {})
    assert seen == [(2, 1), (2, 2)]
    assert _uris(output) == (["a", "b", "c"], ["a", "b", "c"])


def test_small_files_become_large_ones(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = open_tables(output)
    assert tables is not None
    for number in range(4):
        tables.commit(written(output, [(f"v{number}", "1", "ok" if number else "corrupt")]), {})
    before = {read: read(output).sort_by("uri") for read in (read_tags, read_videos)}
    assert not tables.is_scattered
    monkeypatch.setattr("pipeline.tagging.tables.MANY_FILES", 5)
    assert tables.is_scattered
    other = open_tables(output)
    tables.compact()
    assert [len(table.files()) for table in (tables.tags, tables.videos)] == [1, 1]
    for read, rows in before.items():
        assert read(output).sort_by("uri").to_pylist() == rows.to_pylist()
    assert other is not None
    with pytest.raises(ConflictError):
        other.commit(written(output, [C]), {})
    tables.commit(_replaced(output, tables), {})  # bounds and rows are as before
    assert sorted(read_videos(output)["content_version"].to_pylist()) == ["1"] * 5 + ["2"]
    tags = DeltaTable(f"{output}/tags").to_pyarrow_dataset()
    assert duckdb.sql("SELECT count(*) FROM tags WHERE uri = 'b' AND status = 'ok'").fetchall() == [(2,)]
    assert tags is not None
    assert tables.tags.vacuum(keep_hours=1000) == 0
    assert tables.tags.vacuum(keep_hours=0) >= 5
    assert len(read_tags(output)) == 11


def test_other_programs_read_the_tables(output: str) -> None:
    tags = DeltaTable(f"{output}/tags").to_pyarrow_dataset()
    counted = duckdb.sql("SELECT labels[1], count(*) FROM tags WHERE status = 'ok' GROUP BY ALL").fetchall()
    assert tags is not None
    assert counted == [("jump", 4)]
    videos = pl.scan_delta(f"{output}/videos").filter(pl.col("labels").list.contains("jump")).collect()
    assert sorted(videos["uri"]) == ["a", "b"]
    assert videos["spans"][0][0] == {"label": "jump", "start_seconds": 0.0, "end_seconds": 2.0, "score": 0.75}
