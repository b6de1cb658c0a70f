"""What a failure of storage is called, and that no secret is in it."""

from __future__ import annotations

import pickle
import tempfile

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from pipeline.storage.errors import (
    StorageError,
    errors_named,
    first_line,
    last_line,
    lines_of,
    no_space,
    redacted,
)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one.\n\n two", ["one.", "two"]),
        ("", ["ValueError"]),
        ("\x1b[31mfirst\x1b[0m\n  \u21b3 cause", ["first", "cause"]),
    ],
)
def test_lines_of_an_error(text: str, lines: list[str]) -> None:
    error = ValueError(text)
    assert (lines_of(error), first_line(error), last_line(error)) == (lines, lines[0].rstrip("."), lines[-1])


URI = "s3://key:secret@bucket/folder/clip.mp4"


def answered(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "signed with secret"}}, "GetObject")


def named(uri: str, error: Exception) -> StorageError:
    with pytest.raises(StorageError) as caught, errors_named(uri):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (answered("NoSuchKey"), "missing", "check the path"),
        (answered("404"), "missing", "check the path"),
        (answered("NoSuchBucket"), "missing", "check the bucket's name"),
        (answered("AccessDenied"), "forbidden", "check the permissions of these credentials"),
        (answered("403"), "forbidden", "check the credentials and their permissions"),
        (answered("SlowDown"), "unreadable", "check AWS_ENDPOINT_URL, the credentials and the network"),
        (EndpointConnectionError(endpoint_url="http://secret"), "unreadable", "check AWS_ENDPOINT_URL and the network"),
        (NoCredentialsError(), "unreadable", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"),
    ],
)
def test_an_answer_of_object_storage(error: Exception, reason: str, remedy: str) -> None:
    found = named(URI, error)
    assert (found.reason, found.remedy, found.uri) == (reason, remedy, "s3://bucket/folder/clip.mp4")
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("error", "missing", "happened"),
    [
        (FileNotFoundError(2, "No such file or directory"), True, "no such file or directory"),
        (PermissionError(13, "Permission denied"), False, "permission denied"),
        (OSError(28, "No space left on device"), False, "no space left on device"),
        (NotADirectoryError(20, "Not a directory"), False, "a file is where a folder has to be"),
    ],
)
def test_an_error_of_the_disk(error: OSError, missing: bool, happened: str) -> None:
    found = named("/data/clip.mp4", error)
    assert (found.missing, found.happened) == (missing, happened)


def test_errors_of_other_kinds_pass() -> None:
    with pytest.raises(ZeroDivisionError), errors_named(URI):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host/a.mp4?X-Amz-Signature=secret", "https://host/a.mp4"),
        ("s3://bucket/what?.mp4", "s3://bucket/what?.mp4"),
        ("file:///videos/a@b?.mp4", "file:///videos/a@b?.mp4"),
        ("/videos/me:now@home?.mp4", "/videos/me:now@home?.mp4"),
    ],
)
def test_credentials_are_not_part_of_a_name(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_a_reason_that_was_given_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(no_space(2**30)))  # noqa: S301  # as Ray sends it
    assert (error.reason, error.missing) == ("disk_full", False)
    assert error.uri == tempfile.gettempdir()
