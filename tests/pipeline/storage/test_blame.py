"""Whose fault it is that an object cannot be read: what who may upload decides is never that of the surroundings."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError

from pipeline.storage import blame as module
from pipeline.storage.blame import Blame, blame
from pipeline.storage.errors import NOT_A_FILE, OVER_LIMIT, StorageError, errors_named, no_space
from pipeline.storage.fetch import fetched


def named(uri: str, error: Exception) -> StorageError:
    with pytest.raises(StorageError) as caught, errors_named(uri):
        raise error
    return caught.value


def answered(code: str) -> Exception:
    return ClientError({"Error": {"Code": code}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (answered("InvalidObjectState"), Blame.OBJECT),  # archived
        (answered("KeyTooLongError"), Blame.OBJECT),
        (ParamValidationError(report="no key"), Blame.OBJECT),
        (answered("AccessDenied"), Blame.EITHER),  # its own ACL, or the credentials
        (answered("403"), Blame.EITHER),
        (answered("InvalidRequest"), Blame.EITHER),  # SSE-C, or a signature that the server does not know
        (answered("400"), Blame.EITHER),
        (answered("KMS.DisabledException"), Blame.EITHER),
        (answered("NoSuchKey"), Blame.EITHER),
        (answered("NoSuchBucket"), Blame.SURROUNDINGS),
        (answered("SlowDown"), Blame.SURROUNDINGS),
        (answered("503"), Blame.SURROUNDINGS),
        (answered("InvalidAccessKeyId"), Blame.SURROUNDINGS),
        (answered("ExpiredToken"), Blame.SURROUNDINGS),
        (NoCredentialsError(), Blame.SURROUNDINGS),
        (EndpointConnectionError(endpoint_url="http://server"), Blame.SURROUNDINGS),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Blame.SURROUNDINGS),
    ],
)
def test_an_answer_of_object_storage(error: Exception, whose: Blame) -> None:
    assert blame(named("s3://bucket/clip.mp4", error)) is whose


@pytest.mark.parametrize("uri", ["s3:///key.mp4", "s3://me:secret@bucket/key.mp4", "https://server/c.mp4"])
def test_a_name_that_no_request_can_have_is_its_own_fault(uri: str) -> None:
    with pytest.raises(StorageError) as refused, fetched(uri, 100):
        pass
    assert blame(refused.value) is Blame.OBJECT


@pytest.mark.parametrize("reason", [NOT_A_FILE, OVER_LIMIT])
def test_kind_and_size_are_the_objects(reason: str) -> None:
    assert blame(StorageError("s3://b/k", "503", "remedy", reason=reason)) is Blame.OBJECT


def test_a_full_disk_is_this_machines() -> None:
    assert blame(no_space(2**30)) is Blame.SURROUNDINGS


def dangling(folder: Path) -> Path:
    (folder / "link.mp4").symlink_to("/missing/target.mp4")
    return folder / "link.mp4"


def loop(folder: Path) -> Path:
    (folder / "link.mp4").symlink_to("link.mp4")
    return folder / "link.mp4"


def deleted(folder: Path) -> Path:
    (folder / "other.mp4").write_bytes(b"x")
    return folder / "deleted.mp4"


def below_a_missing_folder(folder: Path) -> Path:
    return folder / "unmounted" / "a.mp4"


def in_an_empty_folder(folder: Path) -> Path:
    return folder / "a.mp4"


def below_a_file(folder: Path) -> Path:
    (folder / "list.txt").write_bytes(b"x")
    return folder / "list.txt" / "a.mp4"


def with_a_name_too_long(folder: Path) -> Path:
    return folder / ("x" * 300) / "a.mp4"


@pytest.mark.parametrize(
    ("made", "whose"),
    [
        (dangling, Blame.OBJECT),
        (loop, Blame.OBJECT),
        (deleted, Blame.EITHER),
        (below_a_file, Blame.EITHER),
        (with_a_name_too_long, Blame.EITHER),
        (below_a_missing_folder, Blame.SURROUNDINGS),
        (in_an_empty_folder, Blame.SURROUNDINGS),
    ],
)
def test_a_local_path(made: Callable[[Path], Path], whose: Blame, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as failed, fetched(str(made(tmp_path)), 100):
        pass
    assert blame(failed.value) is whose


@pytest.mark.parametrize(
    ("code", "whose"),
    [(errno.EACCES, Blame.EITHER), (errno.ENOTCONN, Blame.SURROUNDINGS), (errno.ESTALE, Blame.SURROUNDINGS)],
)
def test_a_folder_that_no_longer_answers_is_a_lost_mount(
    code: int, whose: Blame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not permitted may be its owner's wish."""

    def failing(_folder: Path) -> None:
        raise OSError(code, os.strerror(code))

    error = named(str(tmp_path / "a.mp4"), OSError(code, os.strerror(code)))
    monkeypatch.setattr(module.os, "scandir", failing)
    assert blame(error) is whose
