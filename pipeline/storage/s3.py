"""Object storage: boto3 for whole objects and conditional writes, Arrow's own client for columnar reads.

Neither client retries; `pipeline.storage.retry` does, request by request.

Credentials come from the standard chain, the server from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import boto3
import botocore.config
import botocore.exceptions
import pyarrow.fs

from pipeline.storage.errors import StorageError, code_of, is_full, no_space, refuse_over
from pipeline.storage.retry import BUDGET_SECONDS, retried

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 20
"""Without a byte. A third of the retry budget: a request that hangs is repeated within it."""
_COPY_BYTES = 2**20
_MISSING = ("404", "NoSuchKey")
_LOST_RACE = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


def s3_client() -> Any:
    """A boto3 client with short time-outs and without retries; one per process and endpoint, safe to share."""
    identity = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_PROFILE"), os.getpid()
    return _cached_client(_endpoint(), identity)


@functools.lru_cache(maxsize=8)
def _cached_client(endpoint: str | None, _identity: object) -> Any:
    config = botocore.config.Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
        # Servers other than AWS answer the newer streaming checksums with HTTP 411.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def arrow_s3() -> pyarrow.fs.S3FileSystem:
    """Arrow's client of the same server; its paths are ``bucket/key``."""
    return _arrow_s3(_endpoint(), _region())


@functools.lru_cache(maxsize=8)
def _arrow_s3(endpoint: str | None, region: str | None) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        request_timeout=READ_TIMEOUT_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def delta_options(uri: str) -> dict[str, str]:
    """Settings of Delta Lake's client, which reads the keys itself; none for a local table."""
    if not uri.startswith("s3://"):
        return {}
    endpoint, region = _endpoint() or "", _region() or ""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": region,
        "AWS_ALLOW_HTTP": "true" if endpoint.startswith("http://") else "",
        "connect_timeout": f"{CONNECT_TIMEOUT_SECONDS}s",
        "timeout": f"{1000 * READ_TIMEOUT_SECONDS:.0f}ms",
        # The retry policy of `pipeline.storage.retry`, as far as this client has words for it.
        "max_retries": "12",
        "retry_timeout": f"{BUDGET_SECONDS:.0f}s",
        "backoff_config.init_backoff": "250ms",
        "backoff_config.max_backoff": "8s",
    }
    return {name: value for name, value in settings.items() if value}


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    region = boto3.session.Session().region_name
    return region or ("us-east-1" if _endpoint() else None)


def bucket_and_key(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3":
        raise StorageError(uri, f"scheme {scheme!r} is not supported", "use a path, file:// or s3://")
    if "@" in bucket:
        raise StorageError(uri, "credentials inside a URI are refused", "use the AWS credential chain")
    if not bucket:
        raise StorageError(uri, "names no bucket", "write s3://bucket/key")
    return bucket, key


def _request(verb: str, uri: str, **options: Any) -> dict[str, Any]:
    """The answer to one request about one object, repeated by `retried`."""
    bucket, key = bucket_and_key(uri)
    answer: dict[str, Any] = retried(lambda: getattr(s3_client(), verb)(Bucket=bucket, Key=key, **options))
    return answer


def get(uri: str) -> bytes:
    """The whole object."""
    return _content_and_etag(uri)[0]


def _content_and_etag(uri: str) -> tuple[bytes, str]:
    bucket, key = bucket_and_key(uri)

    def read() -> tuple[bytes, str]:  # with the body: it may break off after a good answer
        answer = s3_client().get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), answer["ETag"]

    return retried(read)


def download(uri: str, file: BinaryIO, max_bytes: int | None = None) -> None:
    """The whole object into a local file that is open for writing.

    Raises:
        StorageError: "max_bytes", by the size that the server states before the first byte, or by the bytes that came;
            "disk_full", this machine has no capacity for it.
    """
    bucket, key = bucket_and_key(uri)

    def copy() -> None:
        answer = s3_client().get_object(Bucket=bucket, Key=key)
        with contextlib.closing(answer["Body"]) as body:
            size = int(answer["ContentLength"])
            refuse_over(uri, size, max_bytes)
            if file.tell():  # a try before this one broke off
                file.seek(0)
                file.truncate()
            if size > shutil.disk_usage(tempfile.gettempdir()).free:
                raise no_space(size)
            for part in body.iter_chunks(_COPY_BYTES):
                refuse_over(uri, file.tell() + len(part), max_bytes)
                _write(file, part, size)
        file.flush()

    retried(copy)


def _write(file: BinaryIO, part: bytes, size: int) -> None:
    try:
        file.write(part)
        file.flush()
    except OSError as error:
        raise (no_space(size) if is_full(error) else error) from error


def put(uri: str, data: bytes) -> None:
    """One PUT."""
    _request("put_object", uri, Body=data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """One PUT with ``If-None-Match: *``; whether it created the object."""
    return _put_if(uri, data, IfNoneMatch="*")


def put_if_unchanged(uri: str, before: bytes, data: bytes) -> bool:
    """One PUT with ``If-Match``; whether it replaced an object whose content was ``before``."""
    try:
        content, etag = _content_and_etag(uri)
    except botocore.exceptions.ClientError as error:
        if code_of(error) not in _MISSING:
            raise
        return False
    # Ceph wants the tag without its quotes; others take both.
    return content == before and _put_if(uri, data, IfMatch=etag.strip('"'))


def _put_if(uri: str, data: bytes, **condition: str) -> bool:
    bucket, key = bucket_and_key(uri)
    attempts = 0

    def put() -> None:
        nonlocal attempts
        attempts += 1
        s3_client().put_object(Bucket=bucket, Key=key, Body=data, **condition)

    try:
        retried(put)
    except botocore.exceptions.ClientError as error:
        if code_of(error) not in _LOST_RACE:
            raise
        # A retry of a PUT whose answer was lost meets its own object: the writer that wrote these bytes won.
        return attempts > 1 and get(uri) == data
    return True


def exists(uri: str) -> bool:
    """Whether an object or a non-empty prefix has this name."""
    try:
        _request("head_object", uri)
    except botocore.exceptions.ClientError as error:
        if code_of(error) not in _MISSING:
            raise
        bucket, key = bucket_and_key(uri)
        return bool(_list(Bucket=bucket, Prefix=key.rstrip("/") + "/", MaxKeys=1)["KeyCount"])
    return True


def etag(uri: str) -> str:
    """The ETag of one object, without its quotes."""
    return str(_request("head_object", uri)["ETag"].strip('"'))


def remove(uri: str) -> None:
    """Delete one object; a missing one is fine."""
    _request("delete_object", uri)


def list_objects(uri: str, recursive: bool) -> Iterator[tuple[str, int, int, str]]:
    """``uri, size, modified_ns, etag`` of every object below a prefix."""
    bucket, key = bucket_and_key(uri)
    prefix = key if not key or key.endswith("/") else key + "/"
    options = {} if recursive else {"Delimiter": "/"}
    page: dict[str, Any] = {"NextContinuationToken": None}
    while "NextContinuationToken" in page:
        token = page["NextContinuationToken"]
        position = {"ContinuationToken": token} if token else {}
        # Not boto3's paginator, which cannot repeat a page that failed.
        page = _list(Bucket=bucket, Prefix=prefix, **position, **options)
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                modified_ns = int(item["LastModified"].timestamp() * 1_000_000_000)
                yield f"s3://{bucket}/{item['Key']}", item["Size"], modified_ns, item["ETag"].strip('"')


def _list(**options: Any) -> dict[str, Any]:
    """One page of a listing."""
    page: dict[str, Any] = retried(lambda: s3_client().list_objects_v2(**options))
    return page
