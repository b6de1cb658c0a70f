"""The error of storage: it names the URI, what happened and a remedy, and never a secret."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import boto3.exceptions
import botocore.exceptions

S3_ERRORS = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error)
REMEDIES = {
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


# An archived object, a key over 1024 bytes, no key at all.
_OF_THE_OBJECT = ("InvalidObjectState", "KeyTooLongError", "ParamValidationError")


class StorageError(Exception):
    """A URI that cannot be read or written: names it, what happened and a remedy, never a secret.

    ``missing`` is True when the object does not exist (as opposed to: cannot be reached or is not permitted).
    """

    def __init__(self, uri: str, happened: str, remedy: str, *, missing: bool = False) -> None:
        super().__init__(f"{redacted(uri)}: {happened}; {remedy}")
        self.uri = redacted(uri)
        self.happened = happened
        self.remedy = remedy
        self.missing = missing

    @property
    def reason(self) -> str:
        """One word for the status of a video: ``missing``, ``forbidden`` (to these credentials) or ``unreadable``."""
        forbidden = "AccessDenied" in self.happened or "403" in self.happened
        return "missing" if self.missing else "forbidden" if forbidden else "unreadable"

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


@contextlib.contextmanager
def errors_named(uri: str) -> Iterator[None]:
    """Turn the libraries' errors into a `StorageError`."""
    try:
        yield
    except S3_ERRORS as error:  # first: botocore's time-outs are OSErrors too
        code = code_of(error)
        remedy = REMEDIES.get(code, "check AWS_ENDPOINT_URL, the credentials and the network")
        missing = code in ("404", "NoSuchKey", "NoSuchBucket")
        raise StorageError(uri, f"object storage answered {code}", remedy, missing=missing) from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise StorageError(uri, "a file is where a folder has to be", "check the path") from error
        remedy = "check the path" if missing else "check the path, its permissions and the free space"
        raise StorageError(uri, (error.strerror or str(error)).lower(), remedy, missing=missing) from error


def code_of(error: Exception) -> str:
    """The server's error code or the client's error class: messages could carry request details."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", "an unknown error"))
    return type(error).__name__


def is_of_the_object(error: StorageError) -> bool:
    """Whether the object's own name or state is wrong, and not the storage that should answer.

    A local file counts as such: it cannot be told from its disk.
    """
    return not error.uri.startswith("s3://") or any(code in error.happened for code in _OF_THE_OBJECT)
