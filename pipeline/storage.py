"""Places: local paths, ``file://`` and ``s3://`` URIs, behind one small set of verbs.

A URI's text after ``s3://bucket/`` is the object's key as it is (no percent-decoding); a ``file://`` URI is
percent-decoded, so that a file name that is no valid UTF-8 still has a text. Small objects go through boto3
(conditional PUTs, retried bodies), large columnar reads through ``pyarrow.fs``. Credentials come from the standard
chain, the server from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import pyarrow as pa
import pyarrow.fs
from boto3.s3.transfer import TransferConfig

Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60
REQUEST_ATTEMPTS = 5

LISTING_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("modified_ns", pa.int64()), ("etag", pa.string())]
)
# Transfers stay in the calling thread: callers that want parallel reads run several of them.
_TRANSFER = TransferConfig(use_threads=False, multipart_threshold=5 * 2**30, num_download_attempts=REQUEST_ATTEMPTS)
_S3_ERRORS = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)
_TRANSIENT = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "500",
    "502",
    "503",
    "504",
    "ConnectionClosedError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "RetriesExceededError",
}
_REMEDIES = {
    "NoSuchKey": "check the path",
    "404": "check the path",
    "NoSuchBucket": "check the bucket's name",
    "AccessDenied": "check the permissions of these credentials",
    "403": "check the credentials and their permissions",
    "InvalidAccessKeyId": "check the credentials",
    "SignatureDoesNotMatch": "check the credentials",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
    "EndpointConnectionError": "check AWS_ENDPOINT_URL and the network",
    "ConnectTimeoutError": "check AWS_ENDPOINT_URL and the network",
}


class StorageError(Exception):
    """A place that cannot be read or written: names the URI, what happened and a remedy, never a secret.

    ``missing`` is True when the object does not exist (as opposed to: cannot be reached or is not permitted).
    """

    def __init__(self, uri: str, happened: str, remedy: str, *, missing: bool = False) -> None:
        super().__init__(f"{redacted(uri)}: {happened}; {remedy}")
        self.uri = redacted(uri)
        self.happened = happened
        self.remedy = remedy
        self.missing = missing

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(StorageError, missing=self.missing)
        return rebuild, (self.uri, self.happened, self.remedy)


def redacted(uri: str) -> str:
    """The URI without user information and query, which may hold credentials."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return uri
    authority, slash, path = rest.partition("/")
    if scheme != "s3":  # a question mark is part of an S3 key
        path = path.partition("?")[0]
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


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
    """The local file behind a path or a ``file://`` URI; None for object storage.

    Raises:
        StorageError: a scheme that is neither ``file`` nor ``s3``.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme == "file":
        return Path(os.fsdecode(urllib.parse.unquote_to_bytes("/" + rest.partition("/")[2])))
    _bucket_and_key(uri)
    return None


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        StorageError: it is missing, unreachable or not permitted.
    """
    path = local_path(uri)
    with _errors_named(uri):
        if path is not None:
            return path.read_bytes()
        bucket, key = _bucket_and_key(uri)
        body = io.BytesIO()
        _patiently(lambda: s3_client().download_fileobj(bucket, key, _emptied(body), Config=_TRANSFER))
        return body.getvalue()


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object at once; readers see the old content or the new, never a part.

    Local: temporary file, fsync, rename. S3: one PUT.
    """
    path = local_path(uri)
    with _errors_named(uri):
        if path is None:
            bucket, key = _bucket_and_key(uri)
            _patiently(lambda: s3_client().put_object(Bucket=bucket, Key=key, Body=data))
            return
        with _written_beside(path, data) as temporary:
            os.replace(temporary, path)
        _sync_directory(path.parent)


def write_if_absent(uri: str, data: bytes) -> bool:
    """Create the object unless it exists; of any number of racing writers exactly one gets True.

    Local: a hard link to a finished temporary file. S3: ``If-None-Match: *`` on one PUT.
    """
    path = local_path(uri)
    with _errors_named(uri):
        if path is None:
            return _put_if_absent(uri, data)
        with _written_beside(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _sync_directory(path.parent)
        return True


def exists(uri: str) -> bool:
    """True when an object, a file, a directory or a non-empty prefix is there."""
    path = local_path(uri)
    with _errors_named(uri):
        if path is not None:
            return path.exists()
        bucket, key = _bucket_and_key(uri)
        try:
            _patiently(lambda: s3_client().head_object(Bucket=bucket, Key=key))
        except botocore.exceptions.ClientError as error:
            if _code(error) not in ("404", "NoSuchKey"):
                raise
            prefix = key.rstrip("/") + "/"
            found = _patiently(lambda: s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))
            return bool(found["KeyCount"])
        return True


def delete(uri: str) -> None:
    """Delete one object; one that is not there is fine."""
    path = local_path(uri)
    with _errors_named(uri):
        if path is not None:
            path.unlink(missing_ok=True)
            return
        bucket, key = _bucket_and_key(uri)
        _patiently(lambda: s3_client().delete_object(Bucket=bucket, Key=key))


def list_files(uri: str, suffixes: Sequence[str] | None = None, recursive: bool = True) -> pa.Table:
    """All files below a folder or prefix as ``uri, size, modified_ns, etag``, sorted by URI (absolute).

    Args:
        suffixes: keep names that end so (any case), for example ``(".mp4", ".webm")``; None keeps all.

    Raises:
        StorageError: the folder is missing or unreadable. An S3 prefix without objects is an empty table.
    """
    path = local_path(uri)
    wanted = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
    with _errors_named(uri):
        found = _list_s3(uri, recursive) if path is None else _list_local(path.absolute(), recursive, set())
        rows = [row for row in found if wanted is None or row[0].lower().endswith(wanted)]
    rows.sort()
    columns = [pa.array([row[index] for row in rows], field.type) for index, field in enumerate(LISTING_SCHEMA)]
    return pa.Table.from_arrays(columns, schema=LISTING_SCHEMA)


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow file system of a URI and the path inside it, for columnar reads."""
    path = local_path(uri)
    if path is not None:
        return pyarrow.fs.LocalFileSystem(), str(path)
    bucket, key = _bucket_and_key(uri)
    return _arrow_s3(_endpoint(), _region()), f"{bucket}/{key}"


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the object's content while the context lasts; a local file is its own copy.

    Raises:
        StorageError: it is missing, unreachable or not permitted.
    """
    path = local_path(uri)
    if path is not None:
        if not path.exists():
            raise StorageError(uri, "no such file", "check the path", missing=True)
        yield path
        return
    bucket, key = _bucket_and_key(uri)
    with tempfile.TemporaryDirectory(prefix="video-") as folder:
        copy = Path(folder) / f"object{Path(key).suffix[:16]}"
        with _errors_named(uri):
            _patiently(lambda: s3_client().download_file(bucket, key, str(copy), Config=_TRANSFER))
        yield copy


def s3_client() -> Any:
    """A boto3 client with short time-outs and bounded retries; one per process and endpoint, safe to share."""
    identity = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_PROFILE"), os.getpid()
    return _cached_client(_endpoint(), identity)


@functools.lru_cache(maxsize=8)
def _cached_client(endpoint: str | None, _identity: object) -> Any:
    config = botocore.config.Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
        # Servers other than AWS answer the newer streaming checksums with HTTP 411.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@functools.lru_cache(maxsize=8)
def _arrow_s3(endpoint: str | None, region: str | None) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        request_timeout=READ_TIMEOUT_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=REQUEST_ATTEMPTS),
    )


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    region = boto3.session.Session().region_name
    return region or ("us-east-1" if _endpoint() else None)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3":
        raise StorageError(uri, f"scheme {scheme!r} is not supported", "use a path, file:// or s3://")
    if "@" in bucket:
        raise StorageError(uri, "credentials inside a URI are refused", "use the AWS credential chain")
    if not bucket:
        raise StorageError(uri, "names no bucket", "write s3://bucket/key")
    return bucket, key


@contextlib.contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    """Turn the libraries' errors into one that says where, what and what to do, and no more."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise StorageError(uri, "a file is where a folder has to be", "check the path") from error
        remedy = "check the path" if missing else "check the path, its permissions and the free space"
        raise StorageError(uri, (error.strerror or str(error)).lower(), remedy, missing=missing) from error
    except _S3_ERRORS as error:
        code = _code(error)
        remedy = _REMEDIES.get(code, "check AWS_ENDPOINT_URL, the credentials and the network")
        missing = code in ("404", "NoSuchKey", "NoSuchBucket")
        raise StorageError(uri, f"object storage answered {code}", remedy, missing=missing) from error


def _code(error: Exception) -> str:
    """The server's error code or the client's error class: messages could carry request details."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", "an unknown error"))
    return type(error).__name__


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[str]:
    """A finished, synced temporary file in the target's directory; removed if it is still there at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@functools.cache
def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


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


def _put_if_absent(uri: str, data: bytes) -> bool:
    bucket, key = _bucket_and_key(uri)
    attempts = 0

    def put() -> None:
        nonlocal attempts
        attempts += 1
        s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")

    try:
        _patiently(put)
    except botocore.exceptions.ClientError as error:
        if _code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
            raise
        # A retry of a PUT whose answer was lost meets its own object: the writer that wrote these bytes won.
        retried = attempts > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
        return retried and read_bytes(uri) == data
    return True


def _patiently(request: Callable[[], Result]) -> Result:
    """Once more all of botocore's attempts, where a server that is there answers badly."""
    try:
        return request()
    except _S3_ERRORS as error:
        if _code(error) not in _TRANSIENT:
            raise
    return request()


def _emptied(body: io.BytesIO) -> io.BytesIO:
    body.seek(0)
    body.truncate()
    return body


def _list_local(folder: Path, recursive: bool, seen: set[str]) -> Iterator[tuple[str, int, int, str]]:
    """Links are followed, as data sets are often linked together; ``seen`` breaks circles."""
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


def _list_s3(uri: str, recursive: bool) -> Iterator[tuple[str, int, int, str]]:
    bucket, key = _bucket_and_key(uri)
    prefix = key if not key or key.endswith("/") else key + "/"
    options = {} if recursive else {"Delimiter": "/"}
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
    for page in pages:
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                modified_ns = int(item["LastModified"].timestamp() * 1_000_000_000)
                yield f"s3://{bucket}/{item['Key']}", item["Size"], modified_ns, item["ETag"].strip('"')
