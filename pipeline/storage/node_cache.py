"""Folders that one process of a machine builds and all of them read, below the temporary folder (``TMPDIR``)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.storage.errors import StorageError

UNUSED_SECONDS = 30 * 86_400.0
_PRIVATE = 0o700


def once_per_node(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The finished folder of a key; of any number of processes of this machine and user one builds it.

    The others wait for it. A builder that dies leaves nothing that counts as finished. Folders that no process has
    opened for `UNUSED_SECONDS` are deleted when another one is built.

    Args:
        kind: what is kept, a word for the folder's name.
        key: names the content and nothing else: equal keys mean equal content.
        build: fills an empty folder.

    Raises:
        StorageError: the temporary folder is full, or another user's.
    """
    root = _root(kind)
    folder = root / key
    with _disk_errors_named(root):
        if not folder.exists():
            with _locked(root / f".{key}.lock"):
                if not folder.exists():
                    _delete_unused(root)
                    _build(folder, build)
        os.utime(folder)
    return folder


def _root(kind: str) -> Path:
    return private_folder(Path(tempfile.gettempdir()) / f"video-{kind}-{os.getuid()}")


def private_folder(folder: Path) -> Path:
    """A folder below one that all users write to, made where it is missing: what lies in it is trusted.

    Raises:
        StorageError: it cannot be made, is a link, or another user made it or can write to it.
    """
    with _disk_errors_named(folder):
        folder.mkdir(_PRIVATE, exist_ok=True)
        status = folder.lstat()  # of a link itself, which another user may have planted
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not stat.S_ISDIR(status.st_mode):
        raise StorageError(str(folder), "can be written by another user", "set TMPDIR to a folder of your own")
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        build(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _delete_unused(root: Path) -> None:
    """Old folders, and what builders that died left behind; a process that has one mapped keeps its pages."""
    for entry in root.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime < UNUSED_SECONDS:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process; the kernel releases it when that process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors_named(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        happened = error.strerror or type(error).__name__
        raise StorageError(str(root), happened, "set TMPDIR to a folder with free space") from error
