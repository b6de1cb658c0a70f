"""A full disk: what was there stays, nothing half written appears, and the message has a remedy."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.storage.files import StorageError, replace_if_unchanged, write_bytes, write_if_absent, write_unless

LARGE = b"x" * 2**20
WRITES: dict[str, Callable[[str], object]] = {
    "whole": lambda uri: write_bytes(uri, LARGE),
    "new": lambda uri: write_if_absent(f"{uri}.new", LARGE),
    "changed": lambda uri: replace_if_unchanged(uri, b"before", LARGE),
    "unless": lambda uri: write_unless(uri, LARGE, lambda found: False),
}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more into one file, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_does_not_fit_changes_nothing(write: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"before")
    with files_of_at_most(2**16), pytest.raises(StorageError, match="and the free space"):
        WRITES[write](str(path))
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
