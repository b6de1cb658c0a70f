"""Commits to Delta Lake tables: on top of the snapshot or not at all, also where an answer was lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipeline.storage import retry
from pipeline.storage.delta import (
    Change,
    ConflictError,
    Table,
    create_table,
    open_table,
    statistics_of,
    write_data_file,
)
from pipeline.storage.files import StorageError

SCHEMA = pa.schema([pa.field("uri", pa.string()), pa.field("n", pa.int64()), pa.field("x", pa.list_(pa.string()))])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return create_table(str(tmp_path / "table"), SCHEMA, "what it is")


def _rows(*uris: str) -> pa.Table:
    return pa.table({"uri": list(uris), "n": [None] * len(uris), "x": [["a"]] * len(uris)}, schema=SCHEMA)


def _add(table: Table, *uris: str) -> Change:
    return Change((write_data_file(table.uri, _rows(*uris)),))


def test_a_commit_adds_and_removes_files(table: Table) -> None:
    assert (table.description, table.version, table.transaction, table.files()) == ("what it is", 0, 0, [])
    first = _add(table, "a", "b")
    table.commit(first, {"by": "me"}, 1)
    assert (table.version, table.transaction, table.num_rows()) == (1, 1, 2)
    assert next(table.commits(1))["by"] == "me"
    table.commit(Change(_add(table, "c").adds, (first.adds[0].path,)), {}, 2)
    assert table.num_rows() == 1
    before = open_table(table.uri, as_of=1)
    assert before is not None
    assert before.files() == [f"{table.uri}/{first.adds[0].path}"]
    assert Change.from_json(first.to_json(), table.uri) == first


def test_there_is_one_writer_on_top_of_a_snapshot(table: Table) -> None:
    other = open_table(table.uri)
    assert other is not None
    table.commit(_add(table, "a"), {})
    with pytest.raises(ConflictError, match="another writer has committed meanwhile"):
        other.commit(_add(other, "b"), {})
    with pytest.raises(ConflictError):
        create_table(table.uri, SCHEMA)
    assert open_table(f"{table.uri}/nothing") is None
    assert table.num_rows() == 1


def test_a_commit_whose_answer_was_lost_holds(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that repeats its request meets its own commit, and takes it for another writer's."""
    original = DeltaTable.create_write_transaction

    def lost(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        raise CommitFailedError("version 1 exists")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    table.commit(_add(table, "a"), {})
    table.commit(_add(table, "b"), {})
    assert (table.version, table.num_rows()) == (2, 2)


def test_a_writer_whose_commit_was_hidden_commits_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit reached the log, but not even reading the log did work then."""
    with monkeypatch.context() as patch:
        patch.setattr(retry, "BUDGET_SECONDS", 1.0)
        patch.setattr(DeltaTable, "update_incremental", lambda _: (_ for _ in ()).throw(OSError("no network")))
        with pytest.raises(StorageError, match="no network"):
            table.commit(Change(), {"beat": "1"})
    table.commit(Change(), {"beat": "2"})
    assert [entry.get("beat") for entry in table.commits(2)] == ["2", "1"]


def test_marks_are_forgotten_once_they_are_seen(table: Table) -> None:
    """A job commits every few seconds, for days."""
    for number in range(5):
        table.commit(Change(), {"n": str(number)})
    table.compact(2**20)
    assert table._marks == set()


OUTSIDE = [
    "../secret/x.parquet", "a/../../secret/x.parquet", "/secret/x.parquet", "file:///secret/x.parquet",
    "s3://bucket/x.parquet", "%2E%2E/secret/x.parquet", "..%2fsecret/x.parquet", "%252e%252e%252fx.parquet",
    "..\\secret\\x.parquet", "%2Fsecret/x.parquet", "s3%3A%2F%2Fbucket/x.parquet", "",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_log_names_no_file_outside_of_its_table(path: str, table: Table, tmp_path: Path) -> None:
    """Whoever may write to the log would have a reader's file shown or rewritten."""
    file = write_data_file(str(tmp_path / "secret"), _rows("a"), "x")
    table.commit(_add(table, "a"), {})
    entry = {"path": path, "partitionValues": {}, "size": file.size, "modificationTime": 0, "dataChange": True,
             "stats": file.stats}  # fmt: skip
    log = Path(table.uri) / "_delta_log"
    (log / f"{table.version + 1:020d}.json").write_text(json.dumps({"add": entry}) + "\n")
    with pytest.raises(StorageError, match="damaged"):
        _used(open_table(table.uri))
    for change in ({"adds": [{**entry, "path": path}], "removes": []}, {"adds": [], "removes": [path]}):
        with pytest.raises(StorageError, match="damaged"):
            Change.from_json(json.dumps(change), table.uri)


def _used(table: Table | None) -> None:
    assert table is not None
    with pytest.raises(StorageError, match="damaged: names a file outside"):
        table.paths_between(_texts("a"))
    table.files()


def _texts(*texts: str) -> pa.ChunkedArray:
    return pa.chunked_array([list(texts)], pa.string())


def test_the_newest_commits_are_as_many_as_asked_for(table: Table) -> None:
    """Also where another writer has committed since this snapshot."""
    other = open_table(table.uri)
    assert other is not None
    for number in range(3):
        other.commit(Change(), {"number": str(number)})
    assert [commit["number"] for commit in table.commits(1)] == ["2"]
    assert [commit["number"] for commit in other.commits(2)] == ["2", "1"]


def test_files_are_found_by_their_bounds(table: Table) -> None:
    long = "m" * 100
    for uris in (("a", "c"), ("k", long), ("x", "z")):
        table.commit(_add(table, *uris), {})
    names = {uris: table.paths_between(_texts(*uris)) for uris in ("b", "d", "ay")}
    assert [len(found) for found in names.values()] == [1, 0, 2]
    assert len(table.paths_between(_texts(long))) == 1


def test_statistics_are_of_all_plain_columns() -> None:
    """With bounds of some columns only, readers that filter find no row."""
    stats = json.loads(statistics_of(_rows("b", "a", "ü" * 65)))
    assert stats == {
        "numRecords": 3,
        "minValues": {"uri": "a"},
        "maxValues": {"uri": "ü" * 64 + "\U0010ffff"},
        "nullCount": {"uri": 0, "n": 3},
    }


def test_readers_that_filter_find_the_rows(table: Table) -> None:
    table.commit(_add(table, "a", "b" * 100), {})
    rows = DeltaTable(table.uri).to_pyarrow_dataset()
    for condition in ("uri = 'a'", "n IS NULL AND x[1] = 'a' AND uri < 'b'", f"uri = '{'b' * 100}'"):
        assert duckdb.sql(f"SELECT count(*) FROM rows WHERE {condition}").fetchall() == [(1,)], condition
    assert rows is not None


@pytest.mark.parametrize("levels", [50_000, 1_000_000])
def test_a_deeply_nested_entry_of_the_log_is_one_message(levels: int, tmp_path: Path) -> None:
    """In a process of its own, which it ended."""
    uri = str(tmp_path / "table")
    create_table(uri, pa.schema([("number", pa.int64())]))
    (tmp_path / f"table/_delta_log/{1:020d}.json").write_bytes(b"[" * levels + b"]" * levels)
    program = f"from pipeline.storage.delta import open_table; open_table({uri!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"RUST_BACKTRACE": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.returncode
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pipeline.storage.errors.StorageError: {uri}")
    assert last.endswith("check the path, the permissions and the network")
    assert "0: " not in last


def test_an_error_is_one_line_without_colours(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("Generic S3 error\n \x1b[31m↳\x1b[0m Error performing PUT\n  \x1b[31m↳\x1b[0m operation timed out")
    monkeypatch.setattr(DeltaTable, "update_incremental", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(StorageError, match=r"Generic S3 error: Error performing PUT: operation timed out; check"):
        table.refresh()


def test_errors_name_the_table(tmp_path: Path) -> None:
    log = tmp_path / "_delta_log"
    log.mkdir()
    (log / f"{0:020d}.json").write_text("no json")
    with pytest.raises(StorageError, match=str(tmp_path)):
        open_table(str(tmp_path))


def test_a_log_has_a_checkpoint_every_ten_commits(table: Table) -> None:
    for number in range(11):
        table.commit(Change(), {"n": str(number)})
    assert list(Path(table.uri).glob("_delta_log/*.checkpoint.parquet"))
