"""Local paths, ``file://`` and ``s3://`` URIs behind one small set of verbs. Those on S3 retry (`storage.retry`).

Every verb raises `StorageError` where the object is missing, unreachable or not permitted.

A URI's text after ``s3://bucket/`` is the object's key as it is (no percent-decoding); a ``file://`` URI is
percent-decoded, so that a file name that is no valid UTF-8 still has a text.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import itertools
import json
import os
import tempfile
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from pipeline.storage import s3 as object_storage
from pipeline.storage.errors import StorageError as StorageError
from pipeline.storage.errors import errors_named
from pipeline.storage.s3 import arrow_s3, bucket_and_key

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LISTED_AT_ONCE = 50_000
LISTING_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64()), ("etag", pa.string())]
)


def join(uri: str, *parts: str) -> str:
    """``uri`` with path parts below it, joined by single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def is_local_relative(uri: str) -> bool:
    """True for a local path that depends on the working directory."""
    return "://" not in uri and not os.path.isabs(uri)


def is_local(uri: str) -> bool:
    """True for a local path or a ``file://`` URI."""
    return local_path(uri) is not None


def absolute(uri: str) -> str:
    """A URI that means the same in every process: local paths made absolute, others unchanged."""
    return uri if "://" in uri else os.path.abspath(uri)


def local_path(uri: str) -> Path | None:
    """The local file behind a path or a ``file://`` URI; None for object storage; any other scheme is refused."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme == "file":
        return Path(os.fsdecode(urllib.parse.unquote_to_bytes("/" + rest.partition("/")[2])))
    bucket_and_key(uri)
    return None


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    path = local_path(uri)
    with errors_named(uri):
        return object_storage.get(uri) if path is None else path.read_bytes()


def read_json(uri: str) -> dict[str, Any]:
    """The record that a JSON object holds."""
    record: dict[str, Any] = json.loads(read_bytes(uri))
    return record


def read_text(uri: str) -> str:
    """The whole object as text that people or their editors wrote: `as_text` of its bytes.

    Raises:
        StorageError: it is missing, unreachable or not permitted.
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    return as_text(read_bytes(uri))


def as_text(content: bytes) -> str:
    """Text without byte order mark, and with the line ends of Windows and old Macs as newlines."""
    encoding = "utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object at once; readers see the old content or the new, never a part.

    Local: temporary file, fsync, rename. S3: one PUT.
    """
    path = local_path(uri)
    with errors_named(uri):
        if path is None:
            object_storage.put(uri, data)
            return
        with _written_beside(path, data) as temporary:
            os.replace(temporary, path)
        _sync_directory(path.parent)


def write_if_absent(uri: str, data: bytes) -> bool:
    """Create the object unless it exists; of any number of racing writers exactly one gets True.

    Local: a hard link to a finished temporary file. S3: ``If-None-Match: *`` on one PUT.
    """
    path = local_path(uri)
    with errors_named(uri):
        if path is None:
            return object_storage.put_if_absent(uri, data)
        with _written_beside(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _sync_directory(path.parent)
        return True


def replace_if_unchanged(uri: str, before: bytes, data: bytes) -> bool:
    """Write the object if its content is still ``before``; of racing writers exactly one gets True.

    Local: under a lock of its folder, for writers that use this function. S3: ``If-Match`` on one PUT.
    """
    path = local_path(uri)
    with errors_named(uri):
        if path is None:
            return object_storage.put_if_unchanged(uri, before, data)
        with _locked(path.parent):
            if not path.exists() or path.read_bytes() != before:
                return False
            write_bytes(uri, data)
            return True


def write_unless(uri: str, data: bytes, stays: Callable[[bytes], bool]) -> None:
    """Write the object unless its present content ``stays``; conditional writes, so no later one is lost."""
    while not write_if_absent(uri, data):
        found = read_bytes(uri)
        if found == data or stays(found) or replace_if_unchanged(uri, found, data):
            return


def exists(uri: str) -> bool:
    """True when an object, a file, a directory or a non-empty prefix exists."""
    path = local_path(uri)
    with errors_named(uri):
        return object_storage.is_there(uri) if path is None else path.exists()


def delete(uri: str) -> None:
    """Delete one object; a missing one is fine."""
    path = local_path(uri)
    with errors_named(uri):
        if path is None:
            object_storage.remove(uri)
        else:
            path.unlink(missing_ok=True)


def list_files(uri: str, suffixes: Sequence[str] = ("",), recursive: bool = True) -> pa.Table:
    """All files below a folder or prefix as ``uri, size, modified_ns, etag``, sorted by URI (absolute).

    Args:
        suffixes: keep names that end so (in lower case), for example ``(".mp4", ".webm")``; default: all.

    A folder that is missing is an error, an S3 prefix without objects is an empty table.
    """
    path = local_path(uri)
    with errors_named(uri):
        found = (
            object_storage.list_objects(uri, recursive)
            if path is None
            else _list_local(path.absolute(), recursive, set())
        )
        return _listing(sorted(row for row in found if row[0].lower().endswith(tuple(suffixes))))


def file_names(folder: str, suffix: str = "") -> list[str]:
    """Names of the files directly in a folder or prefix, sorted; none where it does not exist."""
    try:
        listed = list_files(folder, (suffix,), recursive=False)
    except StorageError as error:
        if not error.missing:
            raise
        return []
    return [uri.rpartition("/")[2] for uri in listed["uri"].to_pylist()]


def listed_in_parts(uri: str) -> Iterator[pa.Table]:
    """All files below a folder or prefix as `list_files` gives them, a part at a time: a prefix may hold millions."""
    if is_local(uri):
        yield list_files(uri)
        return
    with errors_named(uri):
        found = object_storage.list_objects(uri, recursive=True)
        while rows := list(itertools.islice(found, LISTED_AT_ONCE)):
            yield _listing(rows)


def content_version(uri: str) -> str:
    """The content version of one object, by the rule of `content_versions`."""
    path = local_path(uri)
    with errors_named(uri):
        if path is None:
            row = (uri, 0, 0, object_storage.etag(uri))
        else:
            status = path.stat()
            row = (uri, status.st_size, status.st_mtime_ns, "")
    return str(content_versions(_listing([row]))[0].as_py())


def content_versions(listing: pa.Table) -> pa.ChunkedArray:
    """What distinguishes the contents that a URI has over time: the ETag, without one the size and time of change.

    Args:
        listing: rows of `LISTING_SCHEMA`; null where neither is known.
    """
    etag, size, modified = (pc.cast(listing[name], pa.string()) for name in ("etag", "size", "modified_ns"))
    has_etag = pc.not_equal(pc.fill_null(etag, ""), "")
    return pc.if_else(has_etag, etag, pc.binary_join_element_wise(size, modified, "-"))


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow file system of a URI and the path inside it, for columnar reads."""
    path = local_path(uri)
    if path is not None:
        return pyarrow.fs.LocalFileSystem(), str(path)
    bucket, key = bucket_and_key(uri)
    return arrow_s3(), f"{bucket}/{key}"


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the object's content while the context lasts; a local file is its own copy."""
    path = local_path(uri)
    if path is not None:
        with errors_named(uri):
            present = path.exists()
        if not present:
            raise StorageError(uri, "no such file", "check the path", missing=True)
        yield path
        return
    _, key = bucket_and_key(uri)
    with tempfile.TemporaryDirectory(prefix="video-") as folder:
        copy = Path(folder) / f"object{Path(key).suffix[:16]}"
        with errors_named(uri):
            object_storage.download(uri, str(copy))
        yield copy


def _listing(rows: Sequence[tuple[str, int, int, str]]) -> pa.Table:
    columns = [pa.array([row[index] for row in rows], field.type) for index, field in enumerate(LISTING_SCHEMA)]
    return pa.Table.from_arrays(columns, schema=LISTING_SCHEMA)


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A finished, synced temporary file in the target's directory; removed if it still exists at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:  # with the permissions of a new file, unlike those of `tempfile`
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Make a rename survive a power cut; some network file systems refuse to, and that is theirs to decide."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _list_local(folder: Path, recursive: bool, seen: set[str]) -> Iterator[tuple[str, int, int, str]]:
    """Links are followed, as data sets are often linked together; ``seen`` breaks cycles."""
    seen.add(os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if recursive and os.path.realpath(entry.path) not in seen:
                    yield from _list_local(Path(entry.path), recursive, seen)
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # a dangling link: listed, so that it ends as a row with a reason
                status = entry.stat(follow_symlinks=False)
            yield _text(entry.path), status.st_size, status.st_mtime_ns, ""


def _text(path: str) -> str:
    """A path as valid text; one that is not UTF-8 becomes a percent-encoded ``file://`` URI."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote(os.fsencode(path))
    return path
