"""Transcoding in a child process, so that no video can take a Ray worker down, hang it or fill its memory.

The parent asks for one video at a time; clips stream back as they are finished, so a day of footage needs the memory
of one clip. Every step has a deadline; a child that dies or hangs is replaced and the video is given a reason.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from pipeline.decode.child_process import LIBRARY_ERRORS, ChildProcess, arm, confine, openable, rejection
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.video_file import Video
from pipeline.transcode.config import Output, TranscodeConfig
from pipeline.transcode.transcode import process

PROGRESS_SECONDS = 0.5


class IsolatedTranscoder:
    """Processes videos in a child; keep it for many videos. Use from one thread at a time."""

    def __init__(self, config: TranscodeConfig, decode: DecodeConfig) -> None:
        self.config = config
        self.decode = decode
        self.children_lost = 0
        self._child: ChildProcess | None = None

    def process(self, path: str | os.PathLike[str]) -> Iterator[Output | VideoInfo]:
        """The clips of a local video, as `transcode.process` emits them; last its facts.

        Raises:
            DecodeError: the video cannot be used ("crashed", "timeout" when the child died of it).
        """
        child = self._child or self._new_child()
        self._child = None  # back in place only after a complete answer: an abandoned one leaves nothing half read
        try:
            kind, content = yield from self._clips(child.answers_to(os.path.abspath(path)))
        except DecodeError:
            self.children_lost += 1
            raise
        except BaseException:
            child.end()
            raise
        self._keep(child)
        if kind == "rejected":
            raise DecodeError(*content)
        yield content

    def _clips(self, answers: Iterator[tuple[Any, ...]]) -> Generator[Output, None, tuple[str, Any]]:
        """Pass the clips on; returns the answer that ends them."""
        for kind, content in answers:
            if kind == "clip":
                yield content
            elif kind != "progress":
                return kind, content
        raise AssertionError  # a child's answers end by an error only

    def _new_child(self) -> ChildProcess:
        settings = self.config, self.decode
        return ChildProcess("pipeline.transcode.child", settings, self.decode.deadline_seconds)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _keep(self, child: ChildProcess) -> None:
        child.answers += 1
        if child.answers >= self.decode.videos_per_child:
            child.end()
        else:
            self._child = child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()


class _Service:
    """The child's side: answers one path at a time until the parent closes the connection."""

    def __init__(self, connection: Connection, config: TranscodeConfig, decode: DecodeConfig) -> None:
        self.connection = connection
        self.config = config
        self.decode = decode
        self._told = 0.0

    def serve(self) -> None:
        self.connection.send(("progress", None))
        while True:
            try:
                path = self.connection.recv()
            except EOFError:
                return
            arm(self.decode.deadline_seconds)
            self.connection.send(self._answer(path))
            arm(0)

    def _answer(self, path: str) -> tuple[str, Any]:
        try:
            return "info", self._process(path)
        except (DecodeError, MemoryError, *LIBRARY_ERRORS) as error:
            return "rejected", rejection(error)

    def _process(self, path: str) -> VideoInfo:
        with openable(path) as name, contextlib.closing(Video(name, self.decode, self._progress)) as video:
            return process(video, self.config, self._emit, self._progress)

    def _emit(self, output: Output) -> None:
        arm(self.decode.deadline_seconds)
        self.connection.send(("clip", output))

    def _progress(self) -> None:
        if time.monotonic() - self._told > PROGRESS_SECONDS:
            self._told = time.monotonic()
            arm(self.decode.deadline_seconds)
            self.connection.send(("progress", None))


def main(connection_file: int) -> None:
    """The child's main: serve the parent at the other end of an inherited socket."""
    connection = Connection(connection_file)
    config, decode = connection.recv()
    confine(decode.memory_bytes)
    _Service(connection, config, decode).serve()
