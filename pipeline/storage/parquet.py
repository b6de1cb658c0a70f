"""Parquet objects: written whole, read whole or by columns; `StorageError` where that fails."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.storage.errors import StorageError
from pipeline.storage.files import filesystem, is_local, read_bytes, write_bytes
from pipeline.storage.retry import retried

Result = TypeVar("Result")
CHECK_IT = "check the path, the permissions and the network"


def parquet_bytes(tables: Iterable[pa.Table], schema: pa.Schema, **options: Any) -> bytes:
    """A Parquet file with one row group (of at most 2**20 rows) for each table.

    Args:
        options: of `pq.ParquetWriter`; default: all columns compressed.
    """
    content = io.BytesIO()
    with pq.ParquetWriter(content, schema, **{"compression": "zstd", **options}) as writer:
        for table in tables:
            writer.write_table(table)
    return content.getvalue()


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    return parquet_bytes([table], table.schema)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one object, as `write_bytes` does."""
    write_bytes(uri, table_bytes(table))


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A small Parquet object by one request, or some of its columns."""
    return pq.read_table(pa.BufferReader(read_bytes(uri)), columns=columns)


def read_columns(uri: str, columns: Sequence[str] | None = None, remedy: str = CHECK_IT) -> pa.Table:
    """Some columns of a large Parquet object; the others are not transferred."""
    names = None if columns is None else list(columns)  # Arrow refuses other sequences

    def read(files: pyarrow.fs.FileSystem, path: str) -> pa.Table:
        return pq.read_table(path, filesystem=files, columns=names, partitioning=None)

    return read_by_arrow(uri, read, remedy)


def read_by_arrow(uri: str, read: Callable[[pyarrow.fs.FileSystem, str], Result], remedy: str = CHECK_IT) -> Result:
    """The result of ``read``, which gets Arrow's file system and the path in it; repeated by `retried`.

    Arrow reports a broken transfer like any other I/O error, so ``read`` has to begin from the start each time.
    """
    files, path = filesystem(uri)
    try:
        return read(files, path) if is_local(uri) else retried(lambda: read(files, path))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) or "NO_SUCH_" in str(error)
        happened = "no such file" if missing else (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise StorageError(uri, happened, remedy, missing=missing) from error
