"""Local paths, ``file://`` and ``s3://`` URIs behind one small set of verbs. Those on S3 retry (`storage.retry`).

Every verb raises `StorageError` where the object is missing, unreachable or not permitted.

A URI's text after ``s3://bucket/`` is the object's key as it is (no percent-decoding); a ``file://`` URI is
percent-decoded, so that a file name that is no valid UTF-8 still has a text.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import os
import tempfile
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from pipeline.storage import s3 as object_storage
from pipeline.storage.errors import OVER_LIMIT, errors_named, refuse_over, size_of_file
from pipeline.storage.errors import StorageError as StorageError
from pipeline.storage.records import Types, as_record
from pipeline.storage.s3 import arrow_s3, bucket_and_key
from pipeline.storage.text import as_text

LISTED_AT_ONCE = 50_000
MOST_TEXT_BYTES = 2**30
LISTING_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64()), ("etag", pa.string())]
)


Listed = tuple[str, int, int | None, str]
"""A row of `LISTING_SCHEMA`."""


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


def read_json(uri: str, entries: Mapping[str, Types] | None = None) -> dict[str, Any]:
    """The record that a JSON object holds; `StorageError` where it is damaged, too.

    Args:
        entries: what it has at least, and of which types.
    """
    return as_record(uri, read_bytes(uri), entries)


def read_text(uri: str) -> str:
    """The whole object as text that people or their editors wrote (`storage.text.as_text`).

    Raises:
        StorageError: it is missing, unreachable, not permitted, no regular file, larger than a GiB, or no text
            (`NotTextError`).
    """
    return as_text(_content_of_text(uri), uri)


def _content_of_text(uri: str) -> bytes:
    """Looked at before it is read: a stranger's may be larger than the memory, or never end."""
    path, content = local_path(uri), io.BytesIO()
    try:
        with errors_named(uri):
            if path is None:
                object_storage.download(uri, content, MOST_TEXT_BYTES)
                return content.getvalue()
            refuse_over(uri, size_of_file(uri, path), MOST_TEXT_BYTES)
            return path.read_bytes()
    except StorageError as error:
        if error.reason != OVER_LIMIT:
            raise
        happened = f"is over the {MOST_TEXT_BYTES >> 20} MiB of a text that is read at once"
        remedy = "give a list as CSV or Parquet, which are read in parts"
        raise StorageError(uri, happened, remedy, reason=OVER_LIMIT) from error


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
        return object_storage.exists(uri) if path is None else path.exists()


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

    A folder that is missing is an error, an S3 prefix without objects is an empty table. ``modified_ns`` is null where
    a file cannot be looked at, as behind a link that leads nowhere.
    """
    path = local_path(uri)
    with errors_named(uri):
        found = object_storage.list_objects(uri, recursive) if path is None else _list_local(path.absolute(), recursive)
        return _listing(sorted(row for row in found if row[0].lower().endswith(tuple(suffixes))))


def list_existing(uri: str, recursive: bool = True) -> pa.Table:
    """As `list_files`; empty where the folder does not exist."""
    try:
        return list_files(uri, recursive=recursive)
    except StorageError as error:
        if not error.missing:
            raise
        return _listing([])


def file_names(folder: str, suffix: str = "") -> list[str]:
    """Names of the files directly in a folder or prefix, sorted; none where it does not exist."""
    names = (uri.rpartition("/")[2] for uri in list_existing(folder, recursive=False)["uri"].to_pylist())
    return [name for name in names if name.lower().endswith(suffix)]


def listed_in_parts(uri: str) -> Iterator[pa.Table]:
    """All files below a folder or prefix as `list_files` gives them, a part at a time: a prefix may hold millions.

    A folder below it that cannot be listed is a row whose ``uri`` ends with a slash: anyone who may add to a collection
    could otherwise end its listing.
    """
    path = local_path(uri)
    with errors_named(uri):
        if path is not None:
            yield _listing(sorted(_list_local(path.absolute(), True, skip_folders=True)))
            return
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
            size_of_file(uri, path)
        yield path
        return
    _, key = bucket_and_key(uri)
    with tempfile.TemporaryDirectory(prefix="video-") as folder:
        copy = Path(folder) / f"object{Path(key).suffix[:16]}"
        with errors_named(uri), copy.open("wb") as file:
            object_storage.download(uri, file)
        yield copy


def _listing(rows: Sequence[Listed]) -> pa.Table:
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


def _list_local(root: Path, recursive: bool, *, skip_folders: bool = False) -> Iterator[Listed]:
    """Links are followed, as data sets are often linked together; no folder is listed twice, which breaks cycles.

    What cannot be looked at, as a link that leads nowhere, is listed without a time, so that it ends as a row with a
    reason. A stack instead of a recursion: folders may lie deeper than Python's stack.

    Args:
        skip_folders: list a folder below the root that cannot be listed as ``folder/`` instead of raising.

    Raises:
        OSError: the root cannot be listed.
    """
    top = os.path.realpath(root)
    seen = {top}
    stack = [(top, _entries(root))]
    while stack:
        folder, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif not _is_folder(entry):
            yield _text(entry.path), *_size_and_time(entry), ""
        elif recursive and (real := _real_path(entry, folder)) not in seen:
            seen.add(real)
            try:
                stack.append((real, _entries(entry.path)))
            except FileNotFoundError:  # deleted since its parent was listed: no longer a part of the source
                continue
            except OSError:
                if not skip_folders:
                    raise
                yield f"{_text(entry.path)}/", 0, None, ""


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """All entries at once: a folder for each level that stayed open could exhaust the handles of the process."""
    with os.scandir(folder) as entries:
        return iter(list(entries))


def _real_path(entry: os.DirEntry[str], folder: str) -> str:
    """Of an entry of a folder whose real path is known: to resolve every level again takes minutes where many are."""
    return os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(folder, entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is not permitted
        return False


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int | None]:
    try:
        status = entry.stat()
    except OSError:
        return 0, None
    return status.st_size, status.st_mtime_ns


def _text(path: str) -> str:
    """A path as valid text; one that is not UTF-8 becomes a percent-encoded ``file://`` URI."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote(os.fsencode(path))
    return path
