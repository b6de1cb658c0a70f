"""Objects inside of others: a member of a tar file, a value of a Parquet file; each has a URI of its own.

``/data/train-0001.tar#bytes=1536+20480/cat.jpg`` is 20,480 bytes from byte 1,536 on, and
``/data/train-0001.parquet#row=17:image/cat.jpg`` the bytes in the struct column ``image`` of row 17; what follows the
last number or column is a name for people. Members are read by ranges: their container is never copied.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from pipeline.storage.errors import StorageError, errors_named, refuse_over
from pipeline.storage.fetch import fetched
from pipeline.storage.files import content_version
from pipeline.storage.parquet import open_parquet, read_by_arrow

_URI = re.compile(
    r"(?P<container>.+\.(?:tar|parquet))#(?:bytes=(?P<start>\d{1,18})\+(?P<size>\d{1,18})|row=(?P<row>\d{1,18})"
    r":(?P<column>[^/]+))/(?P<name>.*)",
    re.IGNORECASE | re.DOTALL,
)
_REMEDY = "check the container, or prepare it again"


@dataclass(frozen=True)
class Member:
    """Where a member's bytes are."""

    container: str
    start: int
    """First byte in a tar file, row in a Parquet file."""
    size: int
    """Bytes in a tar file."""
    column: str
    """Struct column with ``bytes`` in a Parquet file; '' in a tar file."""
    name: str

    @classmethod
    def of(cls, uri: str) -> Member | None:
        """The member that a URI names; None for any other URI."""
        found = _URI.fullmatch(uri)
        if found is None:
            return None
        start, size = int(found["start"] or found["row"]), int(found["size"] or 0)
        return cls(found["container"], start, size, found["column"] or "", found["name"])

    def read(self) -> bytes:
        """The content.

        Raises:
            StorageError: the container is missing or cannot be read, or has no such member.
        """
        return _value(self.container, self.start, self.column) if self.column else _range(self)


def container_of(uri: str) -> str:
    """The object that holds a member; any other URI as it is."""
    member = Member.of(uri)
    return uri if member is None else member.container


def containers_of(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """`container_of` each of many URIs."""
    return pc.replace_substring_regex(uris, pattern=f"(?is)^(?:{_URI.pattern})$", replacement=r"\1")


def harmless(names: Any) -> Any:
    """Names of members as they may stand in a URI: with `..` the URI would be a path to another file once it is
    normalised, and with a number of their own they would name another member."""
    names = pc.replace_substring_regex(names, pattern=r"\.\.(/|$)", replacement=r"_\1")
    return pc.replace_substring_regex(names, pattern=r"(?i)#(bytes|row)=", replacement=r"_\1=")


def version_of(uri: str) -> str:
    """`content_version`, of a member its container's."""
    return content_version(container_of(uri))


@contextlib.contextmanager
def local_content(uri: str, max_bytes: int) -> Iterator[Path]:
    """`fetched`, of members too."""
    member = Member.of(uri)
    if member is None:
        with fetched(uri, max_bytes) as path:
            yield path
        return
    refuse_over(uri, member.size, max_bytes)
    content = member.read()
    refuse_over(uri, len(content), max_bytes)
    with tempfile.TemporaryFile(prefix="member-") as file:
        with errors_named(uri):
            file.write(content)
            file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _range(member: Member) -> bytes:
    def read(files: pyarrow.fs.FileSystem, path: str) -> bytes:
        with files.open_input_file(path) as file:
            content: bytes = file.read_at(member.size, member.start)
            return content

    content = read_by_arrow(member.container, read, _REMEDY)
    if len(content) < member.size:
        raise StorageError(member.container, f"ends within {member.name}", _REMEDY)
    return content


def _value(container: str, row: int, column: str) -> bytes:
    starts = _row_groups(container)
    group = int(np.searchsorted(starts, row, "right")) - 1
    if row >= starts[-1]:
        raise StorageError(container, f"has {starts[-1]} rows, not row {row}", _REMEDY)
    values = _column(container, group, column)
    content = values[row - int(starts[group])].as_py()
    if content is None:
        raise StorageError(container, f"row {row} has no bytes in {column}", _REMEDY, missing=True)
    return bytes(content)


@functools.lru_cache(maxsize=64)
def _row_groups(container: str) -> npt.NDArray[np.int64]:
    """The first row of each row group, and at last the number of rows."""

    def read(files: pyarrow.fs.FileSystem, path: str) -> npt.NDArray[np.int64]:
        with files.open_input_file(path) as file:
            facts = open_parquet(file, container).metadata
            rows = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
            return np.cumsum([0, *rows], dtype=np.int64)

    return read_by_arrow(container, read, _REMEDY)


@functools.lru_cache(maxsize=2)  # a row group of images is tens of megabytes
def _column(container: str, group: int, column: str) -> pa.ChunkedArray:
    def read(files: pyarrow.fs.FileSystem, path: str) -> pa.ChunkedArray:
        with files.open_input_file(path) as file:
            # As a dictionary, as which repeated values take no memory of their own.
            parquet = open_parquet(file, container, pre_buffer=True, read_dictionary=[f"{column}.bytes"])
            table = parquet.read_row_group(group, columns=[f"{column}.bytes"])
        return pa.chunked_array([chunk.field("bytes") for chunk in table[column].chunks])

    return read_by_arrow(container, read, _REMEDY)
