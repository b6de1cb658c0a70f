"""Transcoding in a child process, so that no video can take a Ray worker down, hang it or fill its memory.

The parent asks for one video at a time; clips stream back as they are finished, so a day of footage needs the memory
of one clip. Every step has a deadline; a child that dies or hangs is replaced and the video is given a reason.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error

from pipeline.decode_config import DecodeConfig, DecodeError, VideoInfo
from pipeline.transcode import process
from pipeline.transcode_config import Output, TranscodeConfig
from pipeline.video_file import Video

# The package itself (Ray, Arrow) is not imported by the child, which then starts in a fifth of the time.
CHILD = """
import sys, types
package = types.ModuleType("pipeline")
package.__path__ = [sys.argv[1]]
sys.modules["pipeline"] = package
from pipeline.transcode_process import serve
serve(int(sys.argv[2]))
"""
START_SECONDS = 60.0
PROGRESS_SECONDS = 0.5


class IsolatedTranscoder:
    """Processes videos in a child; keep it for many videos. Use from one thread at a time."""

    def __init__(self, config: TranscodeConfig, decode: DecodeConfig) -> None:
        self.config = config
        self.decode = decode
        self.children_lost = 0
        self._child: _Child | None = None

    def process(self, path: str | os.PathLike[str]) -> Iterator[Output | VideoInfo]:
        """The clips of a local video, as `transcode.process` emits them; last its facts.

        Raises:
            DecodeError: the video cannot be used ("crashed", "timeout" when the child died of it).
        """
        child = self._child or _Child(self.config, self.decode)
        self._child = None  # back in place only after a complete answer: an abandoned one leaves nothing half read
        try:
            info = yield from child.answer(os.path.abspath(path))
        except DecodeError as error:
            if error.reason in ("crashed", "timeout"):
                self.children_lost += 1
                child.end()
                raise
            self._keep(child)
            raise
        except BaseException:
            child.end()
            raise
        self._keep(child)
        yield info

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _keep(self, child: _Child) -> None:
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


class _Child:
    """One transcoding process."""

    def __init__(self, config: TranscodeConfig, decode: DecodeConfig) -> None:
        self.deadline_seconds = decode.deadline_seconds
        self.answers = 0
        mine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, str(Path(__file__).parent), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(mine.detach())
        self._connection.send((config, decode))

    def answer(self, path: str) -> Generator[Output, None, VideoInfo]:
        """Send a request and pass its clips on; returns the video's facts."""
        try:
            if self.answers == 0:
                self._receive(START_SECONDS)
            self._connection.send(path)
            while True:
                kind, content = self._receive(self.deadline_seconds)
                if kind == "clip":
                    yield content
                elif kind != "progress":
                    break
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error
        self.answers += 1
        if kind == "rejected":
            raise DecodeError(*content)
        info: VideoInfo = content
        return info

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self, seconds: float) -> tuple[str, Any]:
        if not self._connection.poll(seconds):
            raise DecodeError("timeout", f"no progress in {seconds:g} s; the transcoder was killed")
        answer: tuple[str, Any] = self._connection.recv()
        return answer

    def _lost(self) -> DecodeError:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return DecodeError("timeout", "the transcoder ended itself after its deadline")
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("crashed", f"the transcoder died of {ending}")


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
            self._arm()
            self.connection.send(self._answer(path))
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _answer(self, path: str) -> tuple[str, Any]:
        try:
            return "info", self._process(path)
        except DecodeError as error:
            return "rejected", error.args
        except MemoryError:
            return "rejected", ("out_of_memory", "decoding needs more than memory_bytes")
        except (av.error.FFmpegError, ValueError, ArithmeticError) as error:
            return "rejected", DecodeError.quoting("damaged", f"{type(error).__name__}: {error}").args

    def _process(self, path: str) -> VideoInfo:
        video = Video(path, self.decode)
        try:
            return process(video, self.config, self._emit, self._progress)
        finally:
            video.close()

    def _emit(self, output: Output) -> None:
        self._arm()
        self.connection.send(("clip", output))

    def _progress(self) -> None:
        if time.monotonic() - self._told > PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._arm()
            self.connection.send(("progress", None))

    def _arm(self) -> None:
        """Die of SIGALRM when the parent could not kill a hang (it may be gone itself)."""
        signal.setitimer(signal.ITIMER_REAL, 2 * self.decode.deadline_seconds + 5)


def serve(connection_file: int) -> None:
    """The child's main: serve the parent at the other end of an inherited socket."""
    connection = Connection(connection_file)
    config, decode = connection.recv()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (decode.memory_bytes, decode.memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    av.logging.set_level(av.logging.PANIC)
    _Service(connection, config, decode).serve()
