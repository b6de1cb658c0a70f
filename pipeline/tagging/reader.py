"""The tables of a tagging output, read with pyarrow. Other programs read them as they read any Delta Lake table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import positions, private_digests
from pipeline.storage.delta import Table, open_table
from pipeline.storage.files import StorageError, join
from pipeline.storage.parquet import read_conformed
from pipeline.storage.records import as_record
from pipeline.storage.retry import in_threads
from pipeline.tagging.schema import EMBEDDING, TAGS, VIDEO_SCHEMA, VIDEOS, tag_schema

# May succeed in the next run; every other failure stays until the object changes.
RETRIED = ("unreadable", "forbidden", "disk_full")
READERS = 8

Ids = npt.NDArray[np.int64]


def read_tags(output: str, columns: Sequence[str] | None = None, as_of: int | str | None = None) -> pa.Table:
    """Some columns or all: one row per window (`tag_schema`), or per video that could not be opened.

    Args:
        as_of: version of the table, or a time stamp (ISO 8601); default: the newest snapshot.

    Raises:
        StorageError: the output has no such table or version.
    """
    table = _table_to_read(output, TAGS, as_of)
    schema = tag_schema(embeddings=EMBEDDING.name in table.column_names)
    return read_files(table.files(), schema, columns)


def read_videos(output: str, columns: Sequence[str] | None = None, as_of: int | str | None = None) -> pa.Table:
    """Some columns or all: one row per video (`VIDEO_SCHEMA`); otherwise as `read_tags`."""
    return read_files(_table_to_read(output, VIDEOS, as_of).files(), VIDEO_SCHEMA, columns)


class TagSnapshot:
    """One snapshot of the table `tags`, read file by file: a file holds whole videos, all windows of each."""

    def __init__(self, output: str, as_of: int | str | None = None) -> None:
        """Raises: StorageError, as `read_tags`."""
        self._table = _table_to_read(output, TAGS, as_of)
        self.output = output
        self.has_embeddings = EMBEDDING.name in self._table.column_names
        self._schema = tag_schema(embeddings=self.has_embeddings)

    def __len__(self) -> int:
        """Rows, by the log."""
        return self._table.num_rows()

    @property
    def version(self) -> int:
        """Number of its last commit."""
        return self._table.version

    @property
    def settings(self) -> dict[str, Any]:
        """What all rows have in common: digest of the weights, windows, precision, ..."""
        return as_record(self._table.uri, self._table.description)

    def files(self) -> list[str]:
        """URIs of its files, in the same order every time."""
        return sorted(self._table.files())

    def part(self, uri: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of one file."""
        return read_files([uri], self._schema, columns)


def _table_to_read(output: str, name: str, as_of: int | str | None) -> Table:
    table = open_table(join(output, name), as_of)
    if table is None:
        raise StorageError(output, "no committed tags", "run `python -m jobs.tag` with this output first")
    return table


class KnownVideos:
    """The videos of an output as numbers, a few bytes each: a source of millions is compared with them."""

    def __init__(self, output: str) -> None:
        table = open_table(join(output, VIDEOS))
        self._files = [] if table is None else table.files()
        keys, contents, ids, settled = self._numbers()
        order = np.argsort(keys, kind="stable")
        self.uri_keys: Ids = keys[order]
        """`uri_keys_of` every video, failed ones included, ascending."""
        self._ids: Ids = ids[order]
        self.settled_keys: Ids = np.sort(contents[settled])
        """`content_keys_of` those that need no retry, ascending."""

    def __len__(self) -> int:
        return len(self.uri_keys)

    def ids_of(self, uri_keys: Ids) -> Ids:
        """`video_id` under which the output holds some videos; -1 for those that it does not hold."""
        found = positions(uri_keys, self.uri_keys)
        return np.where(found < 0, -1, self._ids[found]) if len(self) else np.full(len(uri_keys), -1, np.int64)

    def rows(self, uri_keys: Ids) -> pa.Table:
        """``uri, content_version, video_id`` of some videos."""
        columns = ["uri", "content_version", "video_id"]
        if not len(uri_keys):
            return VIDEO_SCHEMA.empty_table().select(columns)
        wanted = self.ids_of(uri_keys)
        found = [table.filter(pa.array(np.isin(table["video_id"].to_numpy(), wanted))) for table in self._read(columns)]
        return pa.concat_tables(found)

    def _numbers(self) -> tuple[Ids, Ids, Ids, npt.NDArray[np.bool_]]:
        """Of every row: the keys of the URI and of the content, the video's id, whether it is settled."""
        parts = []
        for table in self._read(["uri", "content_version", "video_id", "error_class"]):
            retried = pc.is_in(table["error_class"], value_set=pa.array(RETRIED)).to_numpy()
            parts.append((uri_keys_of(table["uri"]), content_keys_of(table), table["video_id"].to_numpy(), ~retried))
        keys, contents, ids, settled = (np.concatenate(column) for column in zip(*parts, strict=True))
        return keys, contents, ids, settled

    def _read(self, columns: list[str]) -> Iterator[pa.Table]:
        yield VIDEO_SCHEMA.empty_table().select(columns)
        for uri in self._files:
            yield read_files([uri], VIDEO_SCHEMA, columns)


def uri_keys_of(uris: pa.ChunkedArray) -> Ids:
    """A number for every URI, the same within this process."""
    return private_digests(uris).view(np.int64)


def content_keys_of(videos: pa.Table) -> Ids:
    """A number for every ``uri`` with its ``content_version``, the same within this process."""
    return private_digests(videos["uri"], videos["content_version"]).view(np.int64)


def read_files(uris: Sequence[str], schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Some files as one table."""
    if not uris:
        return schema.empty_table().select(list(columns or schema.names))
    return pa.concat_tables(in_threads(READERS, lambda uri: read_conformed(uri, schema, columns), uris))
