"""Memory files: what is stored can be read by path, what is shared cannot be cut."""

from __future__ import annotations

import os
from pathlib import Path

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
