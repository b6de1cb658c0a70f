"""Anonymous memory files: limited by no mount's size, freed with their last user, shared by sending the descriptor."""

from __future__ import annotations

import fcntl
import math
import mmap
import os

import numpy as np
import numpy.typing as npt

Bytes = bytes | bytearray | memoryview


class MemoryFile:
    """Bytes as a file, so that a library that wants a path can read them. Closed by ``close`` or with the object."""

    file = -1
    """Descriptor; -1 where it is closed, or could not be made."""

    def __init__(self, name: str) -> None:
        self.file = os.memfd_create(name)

    @property
    def path(self) -> str:
        """Under which this process can open it."""
        return f"/proc/self/fd/{self.file}"

    def store(self, *contents: Bytes) -> str:
        """Replace the content, by one or by several in turn; returns the path."""
        views = [memoryview(content).cast("B") for content in contents]
        os.ftruncate(self.file, sum(map(len, views)))
        start = 0
        for view in views:
            written = 0
            while written < len(view):  # Linux writes at most 2 GiB at once
                written += os.pwrite(self.file, view[written:], start + written)
            start += len(view)
        return self.path

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def __del__(self) -> None:
        self.close()


class SharedPixels:
    """Memory that another process fills: mapped here as ``pixels`` and, under ``file``, there.

    Its size is sealed. Who cuts a file that others have mapped kills them (SIGBUS) when they look at it next. Closed by
    ``close`` or with the object.
    """

    def __init__(self) -> None:
        self.file = -1
        self.size = 0
        self.pixels: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def reserve(self, size: int) -> None:
        """Have at least ``size`` bytes. More is new memory; it never shrinks, since views of a run are alike."""
        if size <= self.size:
            return
        self.close()
        whole_pages = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
        self.file = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.file, whole_pages)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.pixels = np.frombuffer(mmap.mmap(self.file, whole_pages), np.uint8)
        self.size = whole_pages  # last: whatever fails above, the next call reserves anew

    def close(self) -> None:
        """Give the memory back, once nothing refers to ``pixels``."""
        self.pixels, self.size = np.empty(0, np.uint8), 0
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def __del__(self) -> None:
        self.close()


class SharedView:
    """The other side: the memory behind a descriptor, mapped once, however often a descriptor of it comes."""

    def __init__(self) -> None:
        self._inode = -1
        self._pixels: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def pixels(self, file: int) -> npt.NDArray[np.uint8]:
        """All of it. Mapping it again for every request would fault all its pages in again."""
        status = os.fstat(file)
        if status.st_ino != self._inode:
            self._pixels = np.frombuffer(mmap.mmap(file, status.st_size), np.uint8)
            self._inode = status.st_ino
        return self._pixels
