"""One open video: its facts and its frames, through PyAV. Runs in the decoder's child process only.

Frames are counted in presentation order from 0; they are found by their time stamps, never by the header's count
(HMDB51's AVIs count one too many) nor by ``index / fps`` (variable frame rates). Pictures are RGB uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo

Picture = npt.NDArray[np.uint8]

# Where a frame is missing its neighbour stands in: an empty packet at the end (HMDB51), a repeat packet (Theora).
MISSING_FRAMES_TOLERATED = 2
SEEK_AHEAD_SECONDS = 5.0
PROGRESS_PACKETS = 32
FLOAT_SECONDS = 1e-6  # times that were computed may be off by this much
OPTIONS = {"protocol_whitelist": "file"}  # a playlist inside a "video" must not reach the network


class Video:
    """An open video: its facts, and its frames through PyAV.

    Args:
        progress: called now and then during a pass over all packets or frames, which takes minutes in a long file.
    """

    def __init__(self, path: str, config: DecodeConfig, progress: Callable[[], None] = lambda: None) -> None:
        _check_file(path, config)
        self.path = path
        self.config = config
        self._progress = progress
        try:
            self.container = av.open(path, options=OPTIONS, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise DecodeError.quoting("not_a_video", f"cannot be opened: {error.strerror}") from error
        self.stream = cast(Any, self.container.streams.best("video"))
        if self.stream is None:
            raise DecodeError("no_video_stream", "the file holds no video stream")
        self.codec = self.stream.codec_context
        if self.codec is None or not self.codec.width or not self.stream.time_base:
            raise DecodeError("unsupported", "codec, picture size or time base is unknown")
        self.codec.thread_count = 1
        self.codec.options = {"max_pixels": str(config.max_pixels)}  # also for a size that changes on the way
        self.coded_height, self.coded_width = self.codec.height, self.codec.width
        self.container_name: str = self.container.format.name
        self._check_limits()
        self._times: npt.NDArray[np.int64] | None = None
        self._key_frames: npt.NDArray[np.int64] | None = None
        self._quarter_turns: int | None = None
        self._reformatter = VideoReformatter()
        self.discarded = 0  # packets that an edit list hides

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    @property
    def fps(self) -> float:
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else 0.0

    @property
    def counts_only(self) -> bool:
        """True where packets carry no presentation times: AVI with B-frames numbers them in decoding order."""
        return self.container_name == "avi" and bool(self.codec.has_b_frames)

    @property
    def quarter_turns(self) -> int:
        """Anticlockwise quarter turns from the coded to the shown picture; known once a frame is decoded."""
        if self._quarter_turns is None:
            next(self.frames(), None)
        if self._quarter_turns is None:
            raise DecodeError("damaged", "no frame can be decoded")
        return self._quarter_turns

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width after rotation."""
        size = self.coded_height, self.coded_width
        return size[::-1] if self.quarter_turns % 2 else size

    def info(self) -> VideoInfo:
        """The facts, by headers, packets and the first frame."""
        height, width = self.shown_size
        times = self.times()
        duration = self._duration_seconds(times)
        return VideoInfo(
            width=width,
            height=height,
            fps=self.fps or (len(times) / duration if duration else 0.0),
            num_frames=len(times),
            duration_seconds=duration,
            codec=self.codec.name,
            container=self.container_name,
            rotation=-90 * self.quarter_turns % 360,
        )

    def times_seconds(self) -> npt.NDArray[np.float64]:
        """Presentation time of every frame, in seconds after the first. [frames]"""
        times = self.times()
        if self.counts_only:
            return np.arange(len(times)) / (self.fps or 1.0)
        seconds: npt.NDArray[np.float64] = (times - times[0]) * float(self.stream.time_base)
        return seconds

    def times(self) -> npt.NDArray[np.int64]:
        """Presentation time of every frame, ascending, in the stream's time base. [frames]"""
        if self._times is None:
            packets = self._index_entries() or self._packets()
            if not packets:
                raise DecodeError("damaged", "the video stream holds no frames")
            times, keys = np.array(packets, np.int64).T
            self._times = np.unique(times)
            self._key_frames = np.searchsorted(self._times, np.unique(times[keys > 0]))
        return self._times

    def key_frames(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames that can be sought to. [key frames]"""
        self.times()
        assert self._key_frames is not None
        return self._key_frames

    def read(self, indices: Sequence[int], scale: float) -> Iterator[tuple[int, Picture]]:
        """Yield ``(index, picture)`` for every index (ascending, unique), the sides shrunk to ``scale`` <= 1.

        Raises:
            DecodeError: more than a tolerable few of the frames are missing.
        """
        times = self.times()
        last = len(times) - 1
        if indices[-1] > last + MISSING_FRAMES_TOLERATED:
            raise DecodeError("missing_frames", f"frame {indices[-1]} was requested, the video has {last + 1}")
        if self.counts_only:
            yield from self._numbered(indices, enumerate(self.frames()), scale)
            return
        for run in self._runs(indices):
            yield from self._read_run(run, times, scale)

    def read_times(self, seconds: Sequence[float], scale: float) -> Iterator[tuple[float, Picture]]:
        """The picture shown at each time (ascending, unique), without an index of the whole file."""
        base = float(self.stream.time_base)
        start = self.stream.start_time or 0
        rounded = self._rounded_seconds()
        todo = list(seconds)
        while todo:
            self._seek(start + int(todo[0] / base))
            first = todo[0]
            shown: Any = None
            for frame in self._decoded():
                now = (frame.pts - start) * base if frame.pts is not None else 0.0
                while todo and shown is not None and todo[0] < now - rounded:
                    yield todo.pop(0), self._picture(shown, scale)
                shown = frame
                # Without a picture since the last seek, another would lead to the same key frame again, without end.
                if not todo or (todo[0] > first and todo[0] > now + SEEK_AHEAD_SECONDS):
                    break
            else:
                yield from self._rest(todo, shown, start, scale)
                return

    def frames(self) -> Iterator[Any]:
        """All frames in order as PyAV frames."""
        self._seek_start()
        return self._decoded()

    def checked_frames(self) -> Iterator[tuple[Any, str]]:
        """Like ``frames``, each with what the decoder finds wrong with it ('' for nothing); reports progress.

        Raises:
            DecodeError: "damaged", the decoder gave up, or more than a tolerable few frames never came.
        """
        count, by_packets = 0, len(self.times())
        with Complaints(self) as complaints:
            for frame in self.frames():
                yield frame, "corrupt" if frame.is_corrupt else complaints.new()
                count += 1
                self._progress()
            if complaint := complaints.new():
                raise DecodeError.quoting("damaged", f"after frame {count}: {complaint}")
        promised = max(by_packets, self.stream.frames - self.discarded)
        if count == 0 or count < promised - MISSING_FRAMES_TOLERATED:
            raise DecodeError("damaged", f"{count} of {promised} frames can be decoded")

    def _rounded_seconds(self) -> float:
        """How far a frame's time stamp may lie from its true time: half a tick, none where frames last whole ticks."""
        tick = float(self.stream.time_base)
        ticks = 1 / (self.fps * tick) if self.fps else 0.5
        return FLOAT_SECONDS if abs(ticks - round(ticks)) < 1e-3 else max(tick / 2, FLOAT_SECONDS)

    def _rest(self, todo: list[float], shown: Any, start: int, scale: float) -> Iterator[tuple[float, Picture]]:
        """The last frame stays on screen to the end of the video, and a little longer."""
        if shown is None:
            raise DecodeError("missing_frames", f"no frame at {todo[0]:.3f} s")
        frame_seconds = 1 / self.fps if self.fps else 0.1
        shown_at = ((shown.pts or 0) - start) * float(self.stream.time_base)
        end = max(shown_at, (self.container.duration or 0) / av.time_base)
        if todo[-1] > end + (1 + MISSING_FRAMES_TOLERATED) * frame_seconds:
            raise DecodeError("missing_frames", f"{todo[-1]:.3f} s was requested, the video ends at {end:.3f} s")
        picture = self._picture(shown, scale)
        for key in todo:
            yield key, picture

    def _runs(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Cut the wanted frames where seeking to a key frame saves decoding."""
        assert self._key_frames is not None
        run: list[int] = []
        for index in indices:
            position = int(np.searchsorted(self._key_frames, index, "right")) - 1
            if run and position >= 0 and self._key_frames[position] > run[-1] + 1:
                yield run
                run = []
            run.append(index)
        yield run

    def _read_run(self, run: list[int], times: npt.NDArray[np.int64], scale: float) -> Iterator[tuple[int, Picture]]:
        self._seek(int(times[min(run[0], len(times) - 1)]))
        numbered = self._by_time(times)
        first = next(numbered, None)
        if first is None or first[0] > run[0]:  # the file's index pointed behind the frame
            self._seek_start()
            numbered = self._by_time(times)
            first = next(numbered, None)
        if first is None:
            raise DecodeError("damaged", "no frame can be decoded")
        yield from self._numbered(run, _with_first(first, numbered), scale)

    def _by_time(self, times: npt.NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        for frame in self._decoded():
            if frame.pts is not None:
                yield int(np.searchsorted(times, frame.pts, "right")) - 1, frame

    def _numbered(
        self, wanted: Sequence[int], numbered: Iterator[tuple[int, Any]], scale: float
    ) -> Iterator[tuple[int, Picture]]:
        """Pick the wanted frames; for one that is missing, the frame before it or else the one after it."""
        todo = list(wanted)
        before: tuple[int, Any] | None = None
        for number, frame in numbered:
            while todo and todo[0] < number:
                yield todo[0], self._picture(_neighbour(todo[0], before, (number, frame)), scale)
                todo.pop(0)
            if todo and todo[0] == number:
                yield todo.pop(0), self._picture(frame, scale)
            if not todo:
                return
            before = number, frame
        for index in todo:
            yield index, self._picture(_neighbour(index, before, None), scale)

    def _decoded(self) -> Iterator[Any]:
        """Frames from the current position on."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size == 0 and packet.dts is not None:  # "show the last frame again"
                    continue
                for frame in packet.decode():
                    if self._quarter_turns is None:
                        self._quarter_turns = _quarter_turns(frame.rotation)
                    yield frame
        except av.error.FFmpegError as error:
            raise DecodeError("damaged", f"cannot be decoded: {error.strerror}") from error

    def _picture(self, frame: Any, scale: float) -> Picture:
        height, width = scaled(frame.height, scale), scaled(frame.width, scale)
        # One reformatter for all frames, and one thread: a new one per frame costs ten times as much (measured).
        picture: Any = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        turns = self._quarter_turns or 0
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

    def _seek(self, time: int) -> None:
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            self._reopen()

    def _seek_start(self) -> None:
        self._seek(self.stream.start_time or 0)

    def _reopen(self) -> None:
        """Some containers cannot seek; all can be read from the start."""
        self.container.close()
        self.container = av.open(self.path, options=OPTIONS, metadata_errors="replace")
        self.stream = cast(Any, self.container.streams.best("video"))
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1
        self.codec.options = {"max_pixels": str(self.config.max_pixels)}

    def _index_entries(self) -> list[tuple[int, bool]]:
        """Time and key flag of every frame from an MP4's index, read at opening; empty where it is incomplete."""
        entries = self.stream.index_entries
        complete = self.container_name.startswith("mov") and 0 < self.stream.frames == len(entries)
        if not complete or self.codec.has_b_frames:
            return []
        shown = [(entry.timestamp, entry.is_keyframe) for entry in entries if not entry.is_discard]
        self.discarded = len(entries) - len(shown)
        return shown

    def _packets(self) -> list[tuple[int, bool]]:
        """Time and key flag of every frame from a pass over the packets, which decodes nothing."""
        self._seek_start()
        found: list[tuple[int, bool]] = []
        try:
            for number, packet in enumerate(self.container.demux(self.stream), 1):
                if number % PROGRESS_PACKETS == 0:
                    self._progress()
                time = packet.pts if packet.pts is not None else packet.dts
                self.discarded += packet.is_discard
                if time is not None and packet.size > 0 and not packet.is_discard:
                    found.append((time, packet.is_keyframe))
                if len(found) > self.config.max_frames:
                    raise DecodeError.over("max_frames", len(found), self.config.max_frames)
        except av.error.FFmpegError:
            if not found:
                raise
        return found

    def _duration_seconds(self, times: npt.NDArray[np.int64]) -> float:
        """From the first frame's start to the last frame's end, by the time stamps."""
        if self.counts_only:
            return len(times) / (self.fps or 1.0)
        last_frame_seconds = 1 / self.fps if self.fps else 0.0
        return float(times[-1] - times[0]) * float(self.stream.time_base) + last_frame_seconds

    def _check_limits(self) -> None:
        pixels = self.coded_height * self.coded_width
        if pixels > self.config.max_pixels:
            raise DecodeError.over("max_pixels", pixels, self.config.max_pixels)
        if self.stream.frames > self.config.max_frames:
            raise DecodeError.over("max_frames", self.stream.frames, self.config.max_frames)
        durations = [0.0]
        if self.stream.duration is not None:
            durations.append(float(self.stream.duration * self.stream.time_base))
        if self.container.duration is not None:
            durations.append(self.container.duration / av.time_base)
        if max(durations) > self.config.max_seconds:
            raise DecodeError.over("max_seconds", max(durations), self.config.max_seconds)


class Complaints:
    """Errors that a decoder logs while it still returns frames; in changed H.264 files this finds some more damage.

    Use around decoding, in one thread; what the encoder and the scaler log does not count.
    """

    def __init__(self, video: Video) -> None:
        self.decoder_name: str = video.codec.name
        self._heard = 0

    def __enter__(self) -> Self:
        av.logging.set_level(av.logging.ERROR)
        self._capture = av.logging.Capture()
        self._log = self._capture.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)
        av.logging.set_level(av.logging.PANIC)

    def new(self) -> str:
        """The first one since the last call; '' when there is none."""
        fresh = self._log[self._heard :]
        self._heard = len(self._log)
        return next((text.strip() for _, name, text in fresh if name == self.decoder_name), "")


def scaled(side: int, scale: float) -> int:
    """A side of the picture shrunk to its share, at least one pixel."""
    return max(1, math.ceil(side * scale))


def _check_file(path: str, config: DecodeConfig) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise DecodeError("missing", "no such file") from error
    except OSError as error:
        raise DecodeError("unreadable", str(error.strerror)) from error
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("unreadable", "not a regular file but a folder or a device")
    if size == 0:
        raise DecodeError("empty", "the file has 0 bytes")
    if size > config.max_bytes:
        raise DecodeError.over("max_bytes", size, config.max_bytes)


def _neighbour(index: int, before: tuple[int, Any] | None, after: tuple[int, Any] | None) -> Any:
    for candidate in (before, after):
        if candidate is not None and abs(candidate[0] - index) <= MISSING_FRAMES_TOLERATED:
            return candidate[1]
    raise DecodeError("missing_frames", f"frame {index} was not returned by the decoder")


def _with_first(first: tuple[int, Any], rest: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    yield first
    yield from rest


def _quarter_turns(degrees: int) -> int:
    """Display matrix angle (anticlockwise) → quarter turns; a nonsensical one counts as none."""
    return degrees // 90 % 4 if degrees % 90 == 0 and abs(degrees) <= 360 else 0
