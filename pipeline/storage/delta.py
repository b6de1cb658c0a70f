"""Delta Lake tables: snapshots, and commits that succeed only if no other writer has committed since the snapshot.

Data files are written by workers, as any Parquet object; one process commits their names. The library's log entries are
conditional writes, locally and on S3.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipeline.storage.errors import StorageError, lines_of
from pipeline.storage.files import join, local_path, write_bytes
from pipeline.storage.parquet import CHECK_IT, table_bytes
from pipeline.storage.records import Types, as_list, as_record, paths_within
from pipeline.storage.retry import is_transient, retried
from pipeline.storage.s3 import delta_options

# The library reads JSON by recursion, some 40 bytes of stack a level, in threads that get this much address space each
# (2 MiB otherwise): an entry of 100 kB of brackets ended the process. Read when its first thread starts.
os.environ.setdefault("RUST_MIN_STACK", str(512 * 2**20))

MESSAGE_LENGTH = 400
BACKTRACE = re.compile(r"\s*0: ")
"""How the first line of one begins, where RUST_BACKTRACE is set."""
APPLICATION = "hiera-video"
"""Names the transactions of this project in a table's log."""
MARK = "commit_id"
BOUND_LENGTH = 64
"""Characters of the lowest and highest text of a file in the log."""
MOST_TRIES = 5
"""At one commit, while nobody else commits."""
FILE_ENTRIES: Mapping[str, Types] = {"path": str, "size": int, "stats": str}
SETTINGS = {"delta.checkpointInterval": "10"}
"""Opening a table reads its newest checkpoint and at most nine commits."""


class ConflictError(StorageError):
    """Another writer has committed to a table since this writer read it."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, "another writer has committed meanwhile", "leave the table to it, or start again")


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of a table, to be committed."""

    path: str
    """Relative to the table."""
    size: int
    """Bytes."""
    stats: str
    """Rows, bounds and nulls of the columns (`statistics_of`)."""

    def added(self) -> AddAction:
        """The entry of the log."""
        return AddAction(self.path, self.size, {}, int(time.time() * 1000), True, self.stats)


def statistics_of(rows: pa.Table) -> str:
    """Statistics of a file as the log has them: of every column of plain values, or readers find no rows.

    They compare with the missing bound of a column that has none while another one has, and nothing is above null.
    """
    lowest, highest, nulls = {}, {}, {}
    for column in rows.schema:
        if pa.types.is_string(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            nulls[column.name] = rows[column.name].null_count
            if nulls[column.name] < len(rows):
                bounds = pc.min_max(rows[column.name]).as_py()
                lowest[column.name], highest[column.name] = bounds["min"], bounds["max"]
    shortened = {name: _at_least(value) for name, value in highest.items()}
    lowest = {name: value[:BOUND_LENGTH] if isinstance(value, str) else value for name, value in lowest.items()}
    return json.dumps({"numRecords": len(rows), "minValues": lowest, "maxValues": shortened, "nullCount": nulls})


def _at_least(value: Any) -> Any:
    """A short text that no text with this beginning exceeds."""
    if not isinstance(value, str) or len(value) <= BOUND_LENGTH:
        return value
    return value[:BOUND_LENGTH] + chr(sys.maxunicode)


@dataclass(frozen=True)
class Change:
    """What a commit does to a table."""

    adds: tuple[DataFile, ...] = ()
    removes: tuple[str, ...] = ()
    """Paths of files, relative to the table, that are no longer part of it."""

    def to_json(self) -> str:
        """As text for the log of another table."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, uri: str) -> Change:
        """The reverse of `to_json`.

        Args:
            uri: names the table in whose log it was found.

        Raises:
            DamagedError: it is something else, or names files outside of its table.
        """
        record = as_record(uri, text, {"adds": list, "removes": list})
        adds = as_list(uri, json.dumps(record["adds"]), FILE_ENTRIES)
        for file in adds:
            as_record(uri, file["stats"], {"numRecords": int})
        paths_within(uri, (file["path"] for file in adds))
        removes = paths_within(uri, record["removes"])
        return cls(tuple(DataFile(file["path"], file["size"], file["stats"]) for file in adds), tuple(removes))


def joined(changes: Iterable[Change]) -> Change:
    """Several of them as one."""
    changes = list(changes)
    adds = (file for change in changes for file in change.adds)
    removes = (path for change in changes for path in change.removes)
    return Change(tuple(adds), tuple(removes))


class Table:
    """One snapshot of a table, and the right to commit on top of it."""

    def __init__(self, uri: str, table: DeltaTable) -> None:
        self.uri = uri
        self._table = table
        self._marks: set[str] = set()
        """Of the commits that this writer has tried and not yet seen in the log."""

    @property
    def version(self) -> int:
        """Number of the snapshot's last commit."""
        return int(self._table.version())

    @property
    def transaction(self) -> int:
        """Number of the newest transaction of this project; 0 before the first."""
        with _errors_named(self.uri):
            return int(self._table.transaction_version(APPLICATION) or 0)

    @property
    def description(self) -> str:
        """The text that the table was created with."""
        with _errors_named(self.uri):
            return str(self._table.metadata().description or "")

    @property
    def column_names(self) -> list[str]:
        """Columns of the table."""
        with _errors_named(self.uri):
            return [field.name for field in self._table.schema().fields]

    def files(self) -> list[str]:
        """URIs of the snapshot's files."""
        return [join(self.uri, path) for path in self._actions().column("path").to_pylist()]

    def paths_between(self, uris: pa.ChunkedArray) -> list[str]:
        """Paths of the files that may hold rows of these URIs, by the bounds in the log."""
        actions = self._actions()
        if "min.uri" not in actions.schema.names:
            return list(actions.column("path").to_pylist())
        first, last = actions.column("min.uri"), actions.column("max.uri")
        # A file without bounds may hold anything.
        unbounded = pc.or_kleene(first.is_null(), last.is_null())
        held = pc.or_kleene(pa.array(_holds_any(uris, first.fill_null(""), last.fill_null(""))), unbounded)
        return list(actions.column("path").filter(held).to_pylist())

    def num_rows(self) -> int:
        """Rows of the snapshot, by the log."""
        return int(pc.sum(self._actions().column("num_records")).as_py() or 0)

    def sizes(self) -> list[int]:
        """Bytes of each file."""
        return list(self._actions().column("size_bytes").to_pylist())

    def _actions(self) -> pa.Table:
        """The snapshot's files, all of which lie within the table: others may write to its log, too."""
        with _errors_named(self.uri):
            actions = pa.table(retried(lambda: self._table.get_add_actions(flatten=True)))
        paths_within(self.uri, actions.column("path").to_pylist())
        return actions

    def commits(self, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The newest commits, newest first: their metadata, with ``version`` and ``timestamp``."""
        with _errors_named(self.uri):
            # It counts from this snapshot, so it returns more where others have committed since.
            yield from itertools.islice(retried(lambda: self._table.history(most)), most)

    def refresh(self) -> None:
        """Read what has been committed since."""
        with _errors_named(self.uri):
            retried(self._table.update_incremental)

    def commit(self, change: Change, metadata: Mapping[str, str], transaction: int | None = None) -> None:
        """Commit on top of this snapshot, which becomes that of the commit.

        Args:
            metadata: entries of the commit in the log.
            transaction: number of the transaction, one more than the last.

        Raises:
            ConflictError: anybody else has committed since this snapshot.
        """
        mark = uuid.uuid4().hex
        self._marks.add(mark)
        actions: list[AddAction | RemoveAction] = [file.added() for file in change.adds]
        actions += [RemoveAction(path, True, int(time.time() * 1000)) for path in change.removes]
        properties = CommitProperties(
            custom_metadata={**metadata, MARK: mark},
            max_commit_retries=0,
            app_transactions=[] if transaction is None else [Transaction(APPLICATION, transaction)],
        )
        with _errors_named(self.uri):
            # Again where an earlier commit of this writer, whose answer was lost, turns out to be in the log, and where
            # the request of this one was lost.
            if not any(mark in self._commit_once(actions, properties) for _ in range(MOST_TRIES)):
                raise ConflictError(self.uri)

    def _commit_once(self, actions: list[AddAction | RemoveAction], properties: CommitProperties) -> set[str]:
        """Marks of the commits that the log has after this try; `ConflictError` where one is another writer's."""
        before = self.version
        # It is raised as well where the answer to our own write was lost; the log knows.
        try:
            self._table.create_write_transaction(
                actions, mode="append", schema=self._table.schema(), commit_properties=properties
            )
        except (DeltaError, OSError) as error:
            if not isinstance(error, CommitFailedError) and not is_transient(error):
                raise
        retried(self._table.update_incremental)
        added = self.version - before
        marks = {str(entry.get(MARK)) for entry in (self.commits(added) if added else [])}
        if not marks <= self._marks:
            raise ConflictError(self.uri)
        self._marks -= marks
        return marks

    def compact(self, target_bytes: int) -> None:
        """Join small files into files of about this size, with the same rows, in one commit.

        Raises:
            ConflictError: anybody else has committed since this snapshot.
        """
        mark, before = uuid.uuid4().hex, self.version
        self._marks.add(mark)
        properties = CommitProperties(custom_metadata={MARK: mark}, max_commit_retries=0)
        with _errors_named(self.uri):
            try:
                self._table.optimize.compact(
                    target_size=target_bytes,
                    writer_properties=WriterProperties(compression="ZSTD"),
                    commit_properties=properties,
                )
            except CommitFailedError as error:
                raise ConflictError(self.uri) from error
            retried(self._table.update_incremental)
            added = self.version - before
            if any(entry.get(MARK) != mark for entry in (self.commits(added) if added else [])):
                raise ConflictError(self.uri)
            self._marks.discard(mark)

    def vacuum(self, keep_hours: float) -> int:
        """Delete files that have been part of no snapshot for so long, those of lost commits too; returns how many."""
        with _errors_named(self.uri):
            deleted = self._table.vacuum(
                max(0, round(keep_hours)), dry_run=False, enforce_retention_duration=False, full=True
            )
            retried(self._table.update_incremental)
        return len(deleted)


def _holds_any(texts: pa.ChunkedArray, first: pa.ChunkedArray, last: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether any of the texts lies between the bounds, for every pair of bounds; no text becomes a Python object."""
    columns = [column.cast(pa.large_string()).combine_chunks() for column in (texts, first, last)]
    ranks = pc.rank(pa.concat_arrays(columns), tiebreaker="dense").to_numpy()  # equal texts have one rank
    of_texts, of_first, of_last = np.split(ranks, [len(texts), len(texts) + len(first)])
    ordered = np.sort(of_texts)
    return np.asarray(np.searchsorted(ordered, of_last, "right") > np.searchsorted(ordered, of_first, "left"))


def open_table(uri: str, as_of: int | str | None = None) -> Table | None:
    """The newest snapshot of a table, or that of a version or time stamp (ISO 8601); None where there is no table.

    Raises:
        StorageError: it cannot be read, or has no such version.
    """
    with _errors_named(uri):
        try:
            table = retried(lambda: DeltaTable(_location(uri), storage_options=delta_options(uri)))
            if as_of is not None:
                retried(lambda: table.load_as_version(as_of))
        except TableNotFoundError:
            return None
    return Table(uri, table)


def create_table(uri: str, schema: pa.Schema, description: str = "", settings: Mapping[str, str] = SETTINGS) -> Table:
    """A new table without rows.

    Args:
        settings: properties of the table by the names of Delta Lake.

    Raises:
        ConflictError: it exists.
    """
    path, mark = local_path(uri), uuid.uuid4().hex
    with _errors_named(uri):
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
        try:
            table = DeltaTable.create(
                _location(uri), schema, description=description, configuration=dict(settings),
                storage_options=delta_options(uri), commit_properties=CommitProperties(custom_metadata={MARK: mark}),
            )  # fmt: skip
        except (DeltaError, OSError) as error:
            return _existing(uri, mark, error)
    return Table(uri, table)


def _existing(uri: str, mark: str, error: Exception) -> Table:
    """The table that this writer has created although the answer was lost, or why there is none of its own."""
    table = open_table(uri)
    if table is None:
        raise error
    if mark not in {commit.get(MARK) for commit in table.commits()}:
        raise ConflictError(uri) from error
    return table


def write_data_file(table_uri: str, rows: pa.Table, name: str | None = None) -> DataFile:
    """Write rows as a file of a table, which is part of it once it is committed.

    Args:
        rows: at least one.
    """
    path = f"{name or uuid.uuid4().hex}.parquet"
    content = table_bytes(rows)
    write_bytes(join(table_uri, path), content)
    return DataFile(path, len(content), statistics_of(rows))


def _location(uri: str) -> str:
    path = local_path(uri)
    return uri if path is None else str(path.absolute())


@contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        # From the outermost to the first cause.
        lines = itertools.takewhile(lambda line: not BACKTRACE.match(line), lines_of(error))
        raise StorageError(uri, ": ".join(lines)[:MESSAGE_LENGTH], CHECK_IT) from error
