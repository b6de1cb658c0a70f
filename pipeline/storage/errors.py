"""The error of storage: it names the URI, what happened and a remedy, and never a secret."""

from __future__ import annotations

import contextlib
import errno
import functools
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
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


TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOT_A_FILE, OVER_LIMIT, DISK_FULL = "not_a_file", "max_bytes", "disk_full"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class StorageError(Exception):
    """A URI that cannot be read or written: names it, what happened and a remedy, never a secret.

    ``missing`` is True when the object does not exist (as opposed to: cannot be reached or is not permitted).
    """

    def __init__(self, uri: str, happened: str, remedy: str, *, missing: bool = False, reason: str = "") -> None:
        super().__init__(f"{redacted(uri)}: {happened}; {remedy}")
        self.uri = redacted(uri)
        self.happened = happened
        self.remedy = remedy
        self.missing = missing
        self._reason = reason

    @property
    def reason(self) -> str:
        """One word for the status of a video: ``missing``, ``forbidden`` (to these credentials), ``unreadable``, or one
        that was given: ``not_a_file``, ``max_bytes``, ``disk_full``."""
        if self._reason:
            return self._reason
        forbidden = "AccessDenied" in self.happened or "403" in self.happened
        return "missing" if self.missing else "forbidden" if forbidden else "unreadable"

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(StorageError, missing=self.missing, reason=self._reason)
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


def first_line(error: BaseException) -> str:
    """The first line of what an error reports, without its full stop; the error's type where it reports nothing."""
    return lines_of(error)[0].rstrip(".")


def last_line(error: BaseException) -> str:
    """The last line of what an error reports: of a traceback, the error itself."""
    return lines_of(error)[-1]


def lines_of(error: BaseException) -> list[str]:
    """What an error reports, without colours and empty lines; libraries in Rust put each cause on a line, by an arrow.

    The error's type where it reports nothing.
    """
    lines = (line.strip(" \t\u21b3") for line in TERMINAL_COLOUR.sub("", str(error)).splitlines())
    return [line for line in lines if line] or [type(error).__name__]


def size_of_file(uri: str, path: Path) -> int:
    """Bytes of a local file, by a look at it: opening a FIFO or a device may hang.

    Raises:
        StorageError: "not_a_file".
        OSError: it cannot be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        happened = "a folder, a device or a pipe"
        raise StorageError(uri, happened, "give a regular file", reason=NOT_A_FILE)
    return status.st_size


def refuse_over(uri: str, size: int, most: int | None) -> None:
    """Refuse an object that is larger than permitted; None permits any.

    Raises:
        StorageError: "max_bytes".
    """
    if most is not None and size > most:
        raise StorageError(uri, f"{size} is over max_bytes={most}", "allow more, or leave it out", reason=OVER_LIMIT)


def no_space(size: int) -> StorageError:
    """The temporary folder of this machine cannot hold ``size`` bytes: no object's fault."""
    folder = tempfile.gettempdir()
    happened = f"no space left for a download of {size} bytes"
    return StorageError(
        folder, happened, "free some, set TMPDIR to a larger folder, or lower max_bytes", reason=DISK_FULL
    )


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota is full."""
    return error.errno in _NO_SPACE


def code_of(error: Exception) -> str:
    """The server's error code or the client's error class: messages could carry request details."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", "an unknown error"))
    return type(error).__name__
