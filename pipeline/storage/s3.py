"""Object storage: boto3 for small objects and conditional writes, Arrow's own client for columnar reads.

Credentials come from the standard chain, the server from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import pyarrow.fs
from boto3.s3.transfer import TransferConfig

from pipeline.storage.errors import S3_ERRORS, StorageError, code_of

Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60
REQUEST_ATTEMPTS = 5

# Transfers stay in the calling thread: callers that want parallel reads run several of them.
_TRANSFER = TransferConfig(use_threads=False, multipart_threshold=5 * 2**30, num_download_attempts=REQUEST_ATTEMPTS)
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
_LOST_RACE = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


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
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=REQUEST_ATTEMPTS),
    )


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


def get(uri: str) -> bytes:
    """The whole object."""
    bucket, key = bucket_and_key(uri)
    body = io.BytesIO()
    _asked_once_more(lambda: s3_client().download_fileobj(bucket, key, _emptied(body), Config=_TRANSFER))
    return body.getvalue()


def download(uri: str, path: str) -> None:
    """The whole object into a local file."""
    bucket, key = bucket_and_key(uri)
    _asked_once_more(lambda: s3_client().download_file(bucket, key, path, Config=_TRANSFER))


def put(uri: str, data: bytes) -> None:
    """One PUT."""
    bucket, key = bucket_and_key(uri)
    _asked_once_more(lambda: s3_client().put_object(Bucket=bucket, Key=key, Body=data))


def put_if_absent(uri: str, data: bytes) -> bool:
    """One PUT with ``If-None-Match: *``; whether it created the object."""
    return _put_if(uri, data, IfNoneMatch="*")


def put_if_unchanged(uri: str, before: bytes, data: bytes) -> bool:
    """One PUT with ``If-Match``; whether it replaced an object whose content was ``before``."""
    bucket, key = bucket_and_key(uri)
    try:
        answer = _asked_once_more(lambda: s3_client().get_object(Bucket=bucket, Key=key))
        if answer["Body"].read() != before:
            return False
    except botocore.exceptions.ClientError as error:
        if code_of(error) not in ("NoSuchKey", "404"):
            raise
        return False
    # Ceph wants the tag without its quotes; others take both.
    return _put_if(uri, data, IfMatch=answer["ETag"].strip('"'))


def _put_if(uri: str, data: bytes, **condition: str) -> bool:
    bucket, key = bucket_and_key(uri)
    attempts = 0

    def put() -> None:
        nonlocal attempts
        attempts += 1
        s3_client().put_object(Bucket=bucket, Key=key, Body=data, **condition)

    try:
        _asked_once_more(put)
    except botocore.exceptions.ClientError as error:
        if code_of(error) not in _LOST_RACE:
            raise
        # A retry of a PUT whose answer was lost meets its own object: the writer that wrote these bytes won.
        retried = attempts > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
        return retried and get(uri) == data
    return True


def is_there(uri: str) -> bool:
    """Whether an object or a non-empty prefix has this name."""
    bucket, key = bucket_and_key(uri)
    try:
        _asked_once_more(lambda: s3_client().head_object(Bucket=bucket, Key=key))
    except botocore.exceptions.ClientError as error:
        if code_of(error) not in ("404", "NoSuchKey"):
            raise
        prefix = key.rstrip("/") + "/"
        found = _asked_once_more(lambda: s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))
        return bool(found["KeyCount"])
    return True


def etag(uri: str) -> str:
    """The ETag of one object, without its quotes."""
    bucket, key = bucket_and_key(uri)
    answer = _asked_once_more(lambda: s3_client().head_object(Bucket=bucket, Key=key))
    return str(answer["ETag"].strip('"'))


def remove(uri: str) -> None:
    """Delete one object; one that is not there is fine."""
    bucket, key = bucket_and_key(uri)
    _asked_once_more(lambda: s3_client().delete_object(Bucket=bucket, Key=key))


def list_objects(uri: str, recursive: bool) -> Iterator[tuple[str, int, int, str]]:
    """``uri, size, modified_ns, etag`` of every object below a prefix."""
    bucket, key = bucket_and_key(uri)
    prefix = key if not key or key.endswith("/") else key + "/"
    options = {} if recursive else {"Delimiter": "/"}
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
    for page in pages:
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                modified_ns = int(item["LastModified"].timestamp() * 1_000_000_000)
                yield f"s3://{bucket}/{item['Key']}", item["Size"], modified_ns, item["ETag"].strip('"')


def _asked_once_more(request: Callable[[], Result]) -> Result:
    """Once more all of botocore's attempts, where a server that is there answers badly."""
    try:
        return request()
    except S3_ERRORS as error:
        if code_of(error) not in _TRANSIENT:
            raise
    return request()


def _emptied(body: io.BytesIO) -> io.BytesIO:
    body.seek(0)
    body.truncate()
    return body
