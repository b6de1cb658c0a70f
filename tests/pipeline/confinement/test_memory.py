"""Memory files: what is stored can be read by path, what is shared cannot be cut."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pipeline.confinement.memory import MemoryFile, SharedPixels, SharedView


def test_a_memory_file_has_a_path_and_the_content_stored_last() -> None:
    file = MemoryFile("video")
    for content in (b"long content", bytearray(b"short"), memoryview(b"")):
        assert Path(file.store(content)).read_bytes() == bytes(content)
    assert Path(file.store(b"several, ", bytearray(), memoryview(b"in turn"))).read_bytes() == b"several, in turn"
    file.close()
    file.close()


def test_shared_pixels_grow_by_new_memory_and_are_sealed() -> None:
    shared, view = SharedPixels(), SharedView()
    shared.reserve(10)
    view.pixels(os.dup(shared.file))[:3] = [1, 2, 3]
    assert shared.pixels[:3].tolist() == [1, 2, 3]
    for size in (0, 2 * shared.size):
        with pytest.raises(PermissionError):
            os.ftruncate(shared.file, size)
    before = view.pixels(shared.file)
    assert np.shares_memory(before, view.pixels(os.dup(shared.file)))
    shared.reserve(5)
    assert shared.size == len(before)
    shared.reserve(10 * shared.size)
    assert len(view.pixels(shared.file)) == shared.size == 10 * len(before)
    shared.close()


@pytest.mark.parametrize("refused", ["memfd_create", "ftruncate"])
def test_pixels_that_could_not_be_reserved_are_reserved_by_the_next_call(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where all descriptors are taken: the next, small video must not find memory that is not there."""
    shared = SharedPixels()
    with monkeypatch.context() as patch:
        patch.setattr(os, refused, mock.Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
        with pytest.raises(OSError, match="too many open files"):
            shared.reserve(10)
    assert shared.size == 0
    shared.reserve(10)
    assert len(shared.pixels) == shared.size > 0


def test_descriptors_are_closed_with_their_objects() -> None:
    """A decoder whose child was lost is dropped without `close`."""
    file, shared = MemoryFile("video"), SharedPixels()
    shared.reserve(10)
    descriptors = [file.file, shared.file]
    del file, shared
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_file_that_could_not_be_made_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    raised_when_dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", raised_when_dropped.append)
    monkeypatch.setattr(os, "memfd_create", mock.Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
    with pytest.raises(OSError, match="too many open files"):
        MemoryFile("video")
    gc.collect()
    assert not raised_when_dropped
