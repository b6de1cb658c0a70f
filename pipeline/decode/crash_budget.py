"""Attempts at videos, recorded before they begin: a video that kills its worker has two, not endless ones.

One small file per chunk of work counts the attempts that did not end. When a decoder dies, its worker counts on; when
a worker dies, the next one reads the file. Other videos of the chunk lose nothing: an attempt that ends is taken back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.decode.config import DecodeError
from pipeline.storage.files import StorageError, read_bytes, write_bytes
from pipeline.storage.records import DamagedError, as_record, is_whole_number

logger = logging.getLogger(__name__)

MOST = 2
FATAL = ("crashed", "timeout")


class Attempts:
    """The attempts at the videos of one chunk, kept in one file over all retries of the job."""

    def __init__(self, path: str, refused_as: str = "crashed") -> None:
        self.path = path
        self.refused_as = refused_as
        """The reason for a video that has no attempt left before it is tried."""
        self._unended = self._read()

    @contextmanager
    def at(self, video: str) -> Iterator[None]:
        """One attempt. It stays counted when it never ends (the worker dies) or ends in a reason of `FATAL`.

        Raises:
            DecodeError: ``refused_as``, before anything was tried: two attempts were made already.
        """
        if self.left(video) == 0:
            raise DecodeError(self.refused_as, f"{MOST} attempts killed or hung the decoder or its worker")
        before = self._unended.get(video, 0)
        self._unended[video] = before + 1
        self.write()
        try:
            yield
        except DecodeError as error:
            if error.reason not in FATAL:
                self._take_back(video, before)
            raise
        except BaseException:  # stopped from outside
            self._take_back(video, before)
            self.write()
            raise
        if self._unended[video] == before + 1:
            self._take_back(video, before)

    def give_up(self, video: str) -> None:
        """Count all attempts as made: the decoder itself has tried twice."""
        self._unended[video] = MOST + 1  # more than an attempt that ends takes back
        self.write()

    def left(self, video: str) -> int:
        """How many attempts a video has left."""
        return max(0, MOST - self._unended.get(video, 0))

    def write(self) -> None:
        """Keep the counts. An attempt does it when it begins; the chunk once more after the last one has ended."""
        write_bytes(self.path, json.dumps(self._unended).encode())

    def _take_back(self, video: str, count: int) -> None:
        """In memory; the file follows with the next attempt."""
        self._unended[video] = count
        if not count:
            del self._unended[video]

    def _read(self) -> dict[str, int]:
        try:
            content = read_bytes(self.path)
        except StorageError as error:
            if not error.missing:
                raise
            return {}
        try:
            counts = as_record(self.path, content)
        except DamagedError as error:
            logger.warning("%s; its videos are tried as if for the first time", error)
            return {}
        return {video: count for video, count in counts.items() if is_whole_number(count)}
