"""Annotation files as columns of text, in batches, and the few operations on such columns that readers share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline.manifest.errors import ManifestError
from pipeline.storage.expansion import Expansion
from pipeline.storage.files import StorageError, local_copy
from pipeline.storage.parquet import flat_batches
from pipeline.storage.text import Utf8Stream

_BLOCK_BYTES = 16 * 2**20
_ROWS_AT_ONCE = 250_000


@contextlib.contextmanager
def malformed_named(uri: str | None) -> Iterator[None]:
    """Turn any error that a malformed file raises in its reader into one that names the file.

    Raises:
        ManifestError: it does not follow its convention.
    """
    try:
        yield
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        happened = f"{type(error).__name__}: {str(error)[:200]}"
        raise ManifestError(f"{uri}: does not follow its convention ({happened}); check the file") from error


def line_batches(uri: str) -> Iterator[pa.ChunkedArray]:
    # The separator is a byte that text never holds: every line is one field, whatever its spaces and quotes.
    parse = pyarrow.csv.ParseOptions(delimiter="\x01", quote_char=False)
    for batch in csv_batches(uri, ["line"], parse):
        yield batch["line"]


def read_csv(uri: str, columns: list[str] | None = None) -> pa.Table:
    return pa.concat_tables(csv_batches(uri, columns))


def csv_batches(
    uri: str, columns: list[str] | None = None, parse: pyarrow.csv.ParseOptions | None = None
) -> Iterator[pa.Table]:
    """Every column as text: an id such as 007 or 1e5 must not become a number."""
    with _text_stream(uri) as stream:
        names = columns or _names(stream.first_line())
        reader = pyarrow.csv.open_csv(
            stream,
            pyarrow.csv.ReadOptions(column_names=columns, block_size=_BLOCK_BYTES),
            parse,
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _names(header: str) -> list[str]:
    names: list[str] = pyarrow.csv.read_csv(pa.BufferReader(header.encode() + b"\n")).column_names
    return names


def first_line(uri: str) -> str:
    """The first line, up to 64 KiB of it, without its end and byte order mark."""
    with _text_stream(uri) as stream:
        return stream.first_line()


def parquet_batches(uri: str) -> Iterator[pa.Table]:
    with _errors_named(uri), local_copy(uri) as path:
        yield from flat_batches(path, uri, _ROWS_AT_ONCE)


@contextlib.contextmanager
def _text_stream(uri: str) -> Iterator[Utf8Stream]:
    """An open annotation file, uncompressed by its suffix. Copied first: a stream from a server cannot be retried."""
    with _errors_named(uri), local_copy(uri) as path, pa.input_stream(path, compression="detect") as stream:
        yield Utf8Stream(_Counted(stream, Expansion(uri, path.stat().st_size)), uri)


class _Counted:
    """A stream of which all that is read is counted."""

    def __init__(self, stream: Any, expansion: Expansion) -> None:
        self._stream = stream
        self._expansion = expansion

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._expansion.add(len(data))
        return data


@contextlib.contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise ManifestError(f"{uri}: cannot be read ({str(error)[:200]}); check the file") from error
    except OSError as error:
        raise StorageError(uri, str(error)[:200], "check the path") from error


def as_text(values: Any) -> Any:
    return pc.cast(values, pa.large_string())


def joined(separator: str, *parts: Any) -> Any:
    scalars = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else as_text(part) for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(separator, pa.large_string()))


def empty_to_null(values: pa.ChunkedArray | None) -> pa.ChunkedArray | None:
    if values is None:
        return None
    trimmed = pc.utf8_trim_whitespace(as_text(values))
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)


def extract(values: Any, pattern: str) -> pa.Table:
    """Named groups of a regular expression as columns; all null where it does not match."""
    names = re.findall(r"\(\?P<(\w+)>", pattern)
    found = pc.extract_regex(as_text(values), pattern)
    return pa.table({name: pc.struct_field(found, name) for name in names})


def read_lines(uri: str) -> pa.ChunkedArray:
    """The lines of a text file that are not blank."""
    return pa.chunked_array([chunk for batch in line_batches(uri) for chunk in batch.chunks], pa.large_string())
