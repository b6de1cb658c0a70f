"""Parquet objects: written whole, read whole or by columns; `StorageError` where that fails.

Lists and prepared sets come from strangers. Ray registers Arrow extension types in every process that imports
`ray.data`; the values of one (`ray.data.arrow_pickled_object`) are unpickled when they are looked at. So all Parquet is
opened by `open_parquet`, which refuses every extension type; `tests/test_boundaries.py` lets no other code read it.
A dictionary or a run of equal values makes of a few bytes any number of rows: see `pipeline.storage.expansion`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.storage.errors import StorageError, first_line
from pipeline.storage.expansion import Expansion, refuse_rows
from pipeline.storage.files import filesystem, is_local, read_bytes, write_bytes
from pipeline.storage.records import DAMAGED_REMEDY, DamagedError
from pipeline.storage.retry import retried

Result = TypeVar("Result")
MESSAGE_LENGTH = 160
CHECK_IT = "check the path, the permissions and the network"


def parquet_bytes(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    *,
    footer: Callable[[bytes], Mapping[str, str]] = lambda _: {},
    **options: Any,
) -> bytes:
    """A Parquet file with one row group (of at most 2**20 rows) for each table.

    Args:
        footer: gives the file's own metadata, from all bytes before its footer.
        options: of `pq.ParquetWriter`; default: all columns compressed.
    """
    content = io.BytesIO()
    with pq.ParquetWriter(content, schema, **{"compression": "zstd", **options}) as writer:
        for table in tables:
            writer.write_table(table)
        if texts := footer(content.getvalue()):
            writer.add_key_value_metadata(texts)
    return content.getvalue()


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    return parquet_bytes([table], table.schema)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one object, as `write_bytes` does."""
    write_bytes(uri, table_bytes(table))


def open_parquet(source: Any, uri: str, **options: Any) -> pq.ParquetFile:
    """An open Parquet file whose values cannot run code.

    Args:
        source: what `pq.ParquetFile` takes.
        uri: names the file in errors.
        options: of `pq.ParquetFile`.

    Raises:
        StorageError: a column, or a part of one, is of an extension type, or the file claims far more rows than it can
            hold.
    """
    file = pq.ParquetFile(source, **options)
    refuse_rows(uri, file.metadata.num_rows, _size_of(source))
    for field in file.schema_arrow:
        if (found := _extension_type(field.type)) is not None:
            happened = f"column {field.name!r} is of the extension type {found}, whose values can run code"
            raise StorageError(uri, happened, "give a file of plain columns, from a source that you trust")
    return file


@contextlib.contextmanager
def damage_named(uri: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what Arrow raises for content that is no Parquet, or of types that cannot be cast, into one message.

    Args:
        more: other errors that can only be the content's, as `OSError` of bytes in memory.

    Raises:
        DamagedError: the content is not as it was written.
    """
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, *more) as error:
        raise DamagedError(uri, f"is damaged: {first_line(error)[:MESSAGE_LENGTH]}", DAMAGED_REMEDY) from error


def flat_batches(path: str | os.PathLike[str], uri: str, rows: int) -> Iterator[pa.Table]:
    """The columns of a local file that are not nested, some rows at a time.

    Texts are read as dictionaries, as which they cannot take more memory than their pages, and counted before they are
    written out.

    Raises:
        StorageError: as `open_parquet`; the values take far more memory than the file has bytes.
    """
    schema = open_parquet(path, uri).schema_arrow
    flat = pa.schema([field for field in schema if not pa.types.is_nested(field.type)])
    texts = [field.name for field in flat if _is_text(field.type)]
    expansion = Expansion(uri, _size_of(path))
    for batch in open_parquet(path, uri, read_dictionary=texts).iter_batches(rows, columns=flat.names):
        expansion.add(sum(map(_written_out_bytes, batch.columns)))
        yield pa.table({name: _written_out(values) for name, values in zip(batch.schema.names, batch, strict=True)})


def _is_text(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(kind) for is_kind in kinds)


def _written_out_bytes(values: pa.Array) -> int:
    """What the values take without their dictionary."""
    if not pa.types.is_dictionary(values.type) or not _is_text(values.type.value_type):
        return int(values.nbytes)
    lengths = pc.binary_length(values.dictionary).take(values.indices)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0) + 8 * len(values)


def _written_out(values: pa.Array) -> pa.Array:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _size_of(source: Any) -> int:
    """Bytes of what `pq.ParquetFile` takes."""
    if isinstance(source, str | os.PathLike):
        return os.stat(source).st_size
    return len(source.getbuffer()) if isinstance(source, io.BytesIO) else int(source.size())


def _extension_type(kind: pa.DataType) -> str | None:
    """The name of the extension type that a type is or holds at any depth; None for plain types."""
    if isinstance(kind, pa.BaseExtensionType):
        return str(kind.extension_name)
    children = [kind.field(number).type for number in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        children.append(kind.value_type)
    return next(filter(None, map(_extension_type, children)), None)


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A small Parquet object by one request, or some of its columns."""
    content = pa.BufferReader(read_bytes(uri))
    with damage_named(uri, OSError):
        return _read(open_parquet(content, uri), uri, columns)


def read_columns(uri: str, columns: Sequence[str] | None = None, remedy: str = CHECK_IT) -> pa.Table:
    """Some columns of a large Parquet object; the others are not transferred."""

    def read(files: pyarrow.fs.FileSystem, path: str) -> pa.Table:
        with files.open_input_file(path) as file:
            return _read(open_parquet(file, uri, pre_buffer=True), uri, columns)

    return read_by_arrow(uri, read, remedy)


def read_conformed(uri: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a Parquet object in the types of a schema; those that an older release did not write are null."""
    wanted = [schema.field(name) for name in columns or schema.names]

    def read(files: pyarrow.fs.FileSystem, path: str) -> pa.Table:
        with files.open_input_file(path) as source:
            file = open_parquet(source, uri, pre_buffer=True)
            table = file.read([field.name for field in wanted if field.name in file.schema_arrow.names])
        return conformed(table, pa.schema(wanted), uri)

    return read_by_arrow(uri, read)


def conformed(table: pa.Table, schema: pa.Schema, uri: str, required: Sequence[str] = ()) -> pa.Table:
    """The columns of a schema in its types, with the table's own metadata; columns that it lacks are null.

    Args:
        uri: names the file in errors.
        required: columns in which null is damage.

    Raises:
        DamagedError: a column is of a type that cannot be cast, or holds null where it must not.
    """
    found = {name: table[name] for name in schema.names if table.column_names.count(name) == 1}
    with damage_named(uri):
        arrays = [found.get(field.name, pa.nulls(len(table), field.type)).cast(field.type) for field in schema]
        result = pa.Table.from_arrays(arrays, schema=schema.with_metadata(table.schema.metadata))
    for name in required:
        if result[name].null_count:
            raise DamagedError(uri, f"is damaged: column {name!r} must not hold null", DAMAGED_REMEDY)
    return result


def mapped_table(path: str) -> pa.Table:
    """An Arrow file that this process has written itself, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def _read(file: pq.ParquetFile, uri: str, columns: Sequence[str] | None) -> pa.Table:
    """Some columns, all of which must exist: Arrow would leave out the others."""
    missing = [name for name in columns or () if name not in file.schema_arrow.names]
    if missing:
        raise DamagedError(uri, f"is damaged: it has no column {missing[0]!r}", DAMAGED_REMEDY)
    return file.read(None if columns is None else list(columns))  # Arrow refuses other sequences


def read_by_arrow(uri: str, read: Callable[[pyarrow.fs.FileSystem, str], Result], remedy: str = CHECK_IT) -> Result:
    """The result of ``read``, which gets Arrow's file system and the path in it; repeated by `retried`.

    Arrow reports a broken transfer like any other I/O error, so ``read`` has to begin from the start each time.
    """
    files, path = filesystem(uri)
    try:
        with damage_named(uri):
            return read(files, path) if is_local(uri) else retried(lambda: read(files, path))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) or "NO_SUCH_" in str(error)
        happened = "no such file" if missing else first_line(error)[:MESSAGE_LENGTH]
        raise StorageError(uri, happened, remedy, missing=missing) from error
