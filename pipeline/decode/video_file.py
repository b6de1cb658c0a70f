"""One open video: its facts and its frames, through PyAV. Runs in the decoder's child process only.

Frames are counted in presentation order from 0; they are found by their time stamps, never by the header's count
(HMDB51's AVIs count one too many) nor by ``index / fps`` (variable frame rates). Pictures are RGB uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
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
from pipeline.decode.orientation import Orientation

Picture = npt.NDArray[np.uint8]

# Where a frame is missing its neighbour stands in: an empty packet at the end (HMDB51), a repeat packet (Theora).
MISSING_FRAMES_TOLERATED = 2
SEEK_AHEAD_SECONDS = 5.0
PROGRESS_PACKETS = 32
FIELD_SAMPLE_PACKETS = 64
BACKWARD_SECONDS_TOLERATED = 1.0
REORDERED_FRAMES = 16  # the most between the orders of decoding and of presentation (H.264)
SQUARE_TOLERANCE = 0.02  # encoders state the rounding of a size as an aspect: 426 x 240 with 640:639
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
        self._at_start = True  # nothing of the container was read yet
        self._open()
        self.coded_height, self.coded_width = self.codec.height, self.codec.width
        aspect = float(self.stream.sample_aspect_ratio or 1)
        self.pixel_aspect = aspect if abs(aspect - 1) > SQUARE_TOLERANCE else 1.0
        self.square_pixels = True
        self.container_name: str = self.container.format.name
        self._check_limits()
        self._times: npt.NDArray[np.int64] | None = None
        self._key_frames: npt.NDArray[np.int64] | None = None
        self._origin: int | None = None
        self._orientation: Orientation | None = None
        self._fields = False  # whether packets may be fields; known once a frame is decoded
        self._by_frames = False  # whether the times are those of decoded frames
        self._reformatter = VideoReformatter()
        self._after_leading: Callable[[], object] = lambda: None
        self.discarded = 0  # packets that an edit list hides, or that repeat the last frame
        self.trimmed = 0  # leading pictures that cannot be decoded: what they refer to was cut off

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    @property
    def fps(self) -> float:
        if self._by_frames and self._times is not None and len(self._times) > 1:
            return (len(self._times) - 1) / float((self._times[-1] - self._times[0]) * self.stream.time_base)
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else 0.0

    @property
    def counts_only(self) -> bool:
        """True where packets carry no presentation times: AVI with B-frames numbers them in decoding order.

        So does MXF with H.264, of which FFmpeg reads no index.
        """
        without_times = self.container_name == "avi" or (self.container_name == "mxf" and self.codec.name == "h264")
        return without_times and bool(self.codec.has_b_frames)

    @property
    def has_fields(self) -> bool:
        """Whether packets may be fields instead of frames; known once a frame is decoded."""
        return self._fields

    @property
    def orientation(self) -> Orientation:
        """From the coded to the shown picture; known once a frame is decoded."""
        if self._orientation is None:
            next(self.frames(), None)
        if self._orientation is None:
            raise DecodeError("damaged", "no frame can be decoded")
        return self._orientation

    @property
    def origin(self) -> int:
        """Time of the first frame that can be decoded, in the stream's time base."""
        if self._origin is None:
            entries = self._index_entries()
            if entries and entries[0][1]:
                return entries[0][0]
            next(self.frames(), None)
        if self._origin is None:
            raise DecodeError("damaged", "no frame can be decoded")
        return self._origin

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width as shown: after rotation, in square pixels."""
        size = self._square_size
        return size[::-1] if self.orientation.transposed else size

    @property
    def _square_size(self) -> tuple[int, int]:
        """Height and width before rotation. A size that changes on the way is scaled to this, as FFmpeg does."""
        width = round(self.coded_width * self.pixel_aspect) if self.square_pixels else self.coded_width
        return self.coded_height, max(1, width)

    def info(self) -> VideoInfo:
        """The facts, by headers, packets and the first frame."""
        height, width = self.shown_size
        times = self.times()
        duration = self._duration_seconds(times)
        orientation = self.orientation
        return VideoInfo(
            width=width,
            height=height,
            fps=self.fps or (len(times) / duration if duration else 0.0),
            num_frames=len(times),
            duration_seconds=duration,
            codec=self.codec.name,
            container=self.container_name,
            rotation=orientation.rotation,
            mirrored=orientation.mirrored,
            pixel_aspect=self.pixel_aspect,
            trimmed_frames=self.trimmed,
        )

    @property
    def stated_seconds(self) -> float:
        """The duration that the container states, from its start; 0 where it states none."""
        return self._after_start(self.container.duration, self.container.start_time) / av.time_base

    def _after_start(self, duration: int | None, start: int | None) -> int:
        states_end = self.container_name.startswith(("matroska", "asf"))
        return max(0, (duration or 0) - (max(0, start or 0) if states_end else 0))

    def times_seconds(self) -> npt.NDArray[np.float64]:
        """Presentation time of every frame, in seconds after the first. [frames]"""
        times = self.times()
        seconds: npt.NDArray[np.float64] = (times - times[0]) * float(self.stream.time_base)
        return seconds

    def times(self) -> npt.NDArray[np.int64]:
        """Presentation time of every frame, ascending, in the stream's time base. [frames]"""
        if self._times is None:
            self._by_frames = self._fields
            packets = self._decoded_times() if self._fields else self._index_entries() or self._packets()
            if not packets:
                raise DecodeError("damaged", "the video stream holds no frames")
            self._index(*np.array(packets, np.int64).T)
        assert self._times is not None
        return self._times

    def _index(self, times: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> None:
        """Keep the times [frames, in decoding order] of what can be shown, and where can be sought to."""
        key_times = times[keys > 0]
        shown = np.sort(times)
        if not self.counts_only and len(key_times) and key_times[0] != shown[0] and self.origin <= key_times[0]:
            self.trimmed = int(np.searchsorted(shown, self.origin))
        self._times = shown[self.trimmed :]
        self._key_frames = np.searchsorted(self._times, np.unique(key_times[key_times >= self._times[0]]))

    def key_frames(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames that can be sought to. [key frames]"""
        self.times()
        assert self._key_frames is not None
        return self._key_frames

    def packets_from(self, time: int) -> Iterator[Any]:
        """The packet of the key frame at ``time``, and all after it in decoding order."""
        found = self._approach(time, time, self._timed_packets)
        return itertools.dropwhile(lambda packet: not packet.is_keyframe or packet.pts < time, found)

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
            yield from self._read_run(run, scale)

    def read_times(self, seconds: Sequence[float], scale: float) -> Iterator[tuple[float, Picture]]:
        """The picture shown at each time (ascending, unique), without an index of the whole file."""
        base = float(self.stream.time_base)
        start = self.origin
        rounded = self._rounded_seconds()
        todo = list(seconds)
        while todo:
            first = todo[0]
            shown: Any = None
            time = start + int((first + rounded) / base)
            for frame in self._from_time(time):
                now = (frame.pts - start) * base
                while todo and shown is not None and todo[0] < now - rounded:
                    yield todo.pop(0), self._picture(shown, scale)
                shown = frame
                # Without a picture since the last seek, another would lead to the same key frame again, without end.
                if not todo or (todo[0] > first and todo[0] > now + SEEK_AHEAD_SECONDS):
                    break
            else:
                yield from self._rest(todo, shown, start, scale)
                return

    @property
    def _placeholder(self) -> bool:
        """Whether the second packet of an AVI stands for no picture ("packed bitstream": B-frames come with others)."""
        if not self.counts_only or self.codec.name != "mpeg4" or len(self.stream.index_entries) < 2:
            return False
        return bool(self.stream.index_entries[1].size == 1)

    def frames(self) -> Iterator[Any]:
        """All frames in order as PyAV frames."""
        self._from_start()
        for frame in self._decoded():
            if self._origin is None:
                self._origin = frame.pts + self._placeholder
            yield frame

    def checked_frames(self) -> Iterator[tuple[Any, str]]:
        """Like ``frames``, each with what the decoder finds wrong with it ('' for nothing); reports progress.

        Raises:
            DecodeError: "damaged", the decoder gave up, or more than a tolerable few frames never came.
        """
        count, by_packets = 0, len(self.times())
        self._from_start()  # what the decoder says while a cut stream is opened is no damage
        with Complaints(self) as complaints:
            self._after_leading = complaints.new
            for frame in self.frames():
                yield frame, "corrupt" if frame.is_corrupt else complaints.new()
                count += 1
                self._progress()
            if complaint := complaints.new():
                raise DecodeError.quoting("damaged", f"after frame {count}: {complaint}")
        promised = (
            by_packets if self._by_frames else max(by_packets, self.stream.frames - self.discarded - self.trimmed)
        )
        if count == 0 or count < promised - MISSING_FRAMES_TOLERATED:
            raise DecodeError("damaged", f"{count} of {promised} frames can be decoded")

    def _from_time(self, time: int) -> Iterator[Any]:
        """Frames from the one that is on screen at ``time`` on."""
        if self.counts_only:  # where this begins with a key frame, pictures that are shown before it may be missing
            return _in_order(self._approach(time - REORDERED_FRAMES, time - REORDERED_FRAMES, self._decoded))
        return self._approach(time, time, self._decoded)

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
        shown_at = (shown.pts - start) * float(self.stream.time_base)
        end = max(shown_at, self.stated_seconds)
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

    def _read_run(self, run: list[int], scale: float) -> Iterator[tuple[int, Picture]]:
        times, keys = self.times(), self.key_frames()
        wanted = min(run[0], len(times) - 1)
        key = int(np.searchsorted(keys, wanted, "right")) - 1
        key_time = int(times[keys[key]] if key >= 0 else times[0])
        frames = self._approach(int(times[wanted]), key_time, self._decoded)
        if self._fields and not self._by_frames:
            self._times = None
            yield from self._read_run(run, scale)
        else:
            yield from self._numbered(run, self._by_time(frames, times), scale)

    def _by_time(self, frames: Iterator[Any], times: npt.NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        previous, stamps = -1, times.tolist()  # a list: it is searched for every frame
        for frame in frames:
            last = bisect.bisect_right(stamps, frame.pts) - 1
            if previous < last - 1:
                previous = max(previous, bisect.bisect_left(stamps, stamps[last]) - 1)
            previous = min(previous + 1, last)  # several frames may have one time
            yield previous, frame

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

    def _decoded(self, time: int | None = None, anywhere: bool = False) -> Iterator[Any]:
        """Frames from the current position on, each with a time; none before the first key frame.

        Args:
            time: where given, packets before the last key frame until then are not decoded.
            anywhere: whether to begin before a key frame.
        """
        from_start, self._at_start = self._at_start, False
        key_time: int | None = None
        last: int | None = None
        step = max(1, round(1 / (self.fps * float(self.stream.time_base)))) if self.fps else 1
        try:
            packets = self.container.demux(self.stream)
            for packet in packets if time is None else _from_key_frame(packets, time):
                if packet.size == 0 and packet.dts is not None:  # "show the last frame again"
                    continue
                if key_time is None and packet.size:
                    if not packet.is_keyframe and not anywhere:  # MPEG-4 would return it as a grey picture
                        continue
                    key_time = packet.pts if packet.pts is not None else packet.dts or 0
                frames = packet.decode()
                if self.trimmed and packet.pts is not None and packet.pts < self.origin:
                    self._after_leading()
                for frame in frames:
                    if last is None and frame.is_corrupt and frame.pts is not None and frame.pts < (key_time or 0):
                        continue
                    if frame.pts is None:
                        frame.pts = 0 if last is None else last + step
                    if self._orientation is None:
                        self._learn_from(frame)
                    last = frame.pts
                    yield frame
        except av.error.FFmpegError as error:
            raise DecodeError("damaged", f"cannot be decoded: {error.strerror}") from error
        if key_time is None and from_start and not anywhere:  # no packet is called a key frame
            self._from_start()
            yield from self._decoded(anywhere=True)

    def _learn_from(self, frame: Any) -> None:
        """What only a decoded frame tells: which way up it is, and whether packets may be fields."""
        self._orientation = Orientation.of(frame)
        if frame.interlaced_frame and self.codec.name == "h264":
            self._fields = self._packets_are_fields()

    def _packets_are_fields(self) -> bool:
        """Whether an interlaced stream has more packets than frames, by its first few in a container of their own.

        Most interlaced H.264 has a packet a frame, and needs no pass that decodes all of it for an index.
        """
        packets = frames = 0
        with av.open(self.path, options=OPTIONS, metadata_errors="replace") as container:
            stream = cast(Any, container.streams.best("video"))
            stream.codec_context.thread_count = 1
            for packet in itertools.islice(container.demux(stream), FIELD_SAMPLE_PACKETS):
                packets += packet.size > 0
                frames += len(packet.decode())
            with contextlib.suppress(av.error.EOFError):  # the end was among them
                frames += len(stream.codec_context.decode(None))
        return packets > frames + max(MISSING_FRAMES_TOLERATED, frames // 4)

    def _picture(self, frame: Any, scale: float) -> Picture:
        height, width = (scaled(side, scale) for side in self._square_size)
        # One reformatter for all frames, and one thread: a new one per frame costs ten times as much (measured).
        picture: Any = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        return self._orientation.upright(picture) if self._orientation else picture

    def _approach(self, time: int, key_time: int, read: Callable[..., Iterator[Any]]) -> Iterator[Any]:
        """Frames or packets from one at or before ``time`` on.

        A seek may lead behind the frame: MPEG-TS and MPEG-PS have no index and know no key frames, and after the key
        frame of an open GOP come pictures that are shown before it. So the first frame decides, and what came too late
        is sought again, further and further back, at last from the start.

        Args:
            key_time: where the key frame before is, if that is known.
        """
        back = round(1 / float(self.stream.time_base))
        if self.container_name == "mpeg":  # in the middle FFmpeg guesses times: one stands for several pictures
            self._from_start()
            return read(time)
        if self.codec.pix_fmt == "pal8":  # the palette may come with the first packet alone
            self._from_start()
            return read()
        while self._seek(key_time):
            found = read()
            first = next(found, None)
            if first is not None and first.pts <= time:
                return itertools.chain([first], found)
            if key_time <= (self._origin or 0):
                break
            key_time, back = max(key_time - back, self._origin or 0), 2 * back
        self._from_start()
        return read()

    def _from_start(self) -> None:
        if not self._at_start:
            self.container.close()
            self._open()

    def _seek(self, time: int) -> bool:
        """False where the container cannot seek; all can be read from the start."""
        self._at_start = False
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _open(self) -> None:
        try:
            self.container = av.open(self.path, options=OPTIONS, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise DecodeError.quoting("not_a_video", f"cannot be opened: {error.strerror}") from error
        self.stream = cast(Any, self.container.streams.best("video"))
        if self.stream is None:
            raise DecodeError("no_video_stream", "the file holds no video stream")
        self.codec = self.stream.codec_context
        if self.codec is None or not self.codec.width or not self.stream.time_base:
            raise DecodeError("unsupported", "codec, picture size or time base is unknown")
        self.codec.thread_count = 1
        self.codec.options = {"max_pixels": str(self.config.max_pixels)}  # also for a size that changes on the way
        self._at_start = True

    def _index_entries(self) -> list[tuple[int, bool]]:
        """Time and key flag of every frame from an MP4's index, read at opening; empty where it is incomplete."""
        entries = self.stream.index_entries
        complete = self.container_name.startswith("mov") and 0 < self.stream.frames == len(entries)
        if not complete or self.codec.has_b_frames:
            return []
        shown = [(entry.timestamp, entry.is_keyframe) for entry in entries if not entry.is_discard]
        self.discarded = len(entries) - len(shown)
        return shown

    def _timed_packets(self, time: int | None = None) -> Iterator[Any]:
        """Packets from the first key frame's on; ``time`` is for ``_decoded`` alone."""
        self._at_start = False
        timed = (packet for packet in self.container.demux(self.stream) if packet.size and packet.pts is not None)
        return itertools.dropwhile(lambda packet: not packet.is_keyframe, timed)

    def _packets(self) -> list[tuple[int, bool]]:
        """Time and key flag of every frame from a pass over the packets, which decodes nothing."""
        self._from_start()
        self._at_start = False
        newest = -math.inf
        found: list[tuple[int, bool]] = []
        try:
            for number, packet in enumerate(self.container.demux(self.stream), 1):
                if number % PROGRESS_PACKETS == 0:
                    self._progress()
                time = packet.pts if packet.pts is not None else packet.dts
                self.discarded += packet.is_discard
                if time is not None and packet.size > 0 and not packet.is_discard and not self._hidden(packet):
                    found.append((time, packet.is_keyframe))
                if packet.dts is not None:
                    if (newest - packet.dts) * float(self.stream.time_base) > BACKWARD_SECONDS_TOLERATED:
                        raise DecodeError("unsupported", f"the time stamps start again after {len(found) - 1} frames")
                    newest = max(newest, packet.dts)
                if len(found) > self.config.max_frames:
                    raise DecodeError.over("max_frames", len(found), self.config.max_frames)
        except av.error.FFmpegError:
            if not found:
                raise
        if self._placeholder:
            found[:2] = [(found[1][0], found[0][1])]
        if self.container_name == "avi" and found:  # a tick is a frame; where packets are missing the last one stays
            self.discarded = max(0, max(found)[0] - min(found)[0] + 1 - len(found))
        return found

    def _hidden(self, packet: Any) -> bool:
        """A VP8 packet may hold a picture that others refer to and that is never shown (RFC 6386, 9.1)."""
        return self.codec.name == "vp8" and not bytes(packet)[0] & 0x10

    def _decoded_times(self) -> list[tuple[int, bool]]:
        """Time and key flag of every frame from a pass over the frames: packets may be fields."""
        found = []
        for frame in self.frames():
            found.append((frame.pts, frame.key_frame))
            self._progress()
        return found

    def _duration_seconds(self, times: npt.NDArray[np.int64]) -> float:
        """From the first frame's start to the last frame's end, by the time stamps."""
        last_frame_seconds = 1 / self.fps if self.fps else 0.0
        return float(times[-1] - times[0]) * float(self.stream.time_base) + last_frame_seconds

    def _check_limits(self) -> None:
        pixels = math.prod(self._square_size)
        if pixels > self.config.max_pixels:
            raise DecodeError.over("max_pixels", pixels, self.config.max_pixels)
        if self.stream.frames > self.config.max_frames:
            raise DecodeError.over("max_frames", self.stream.frames, self.config.max_frames)
        durations = [self.stated_seconds, self._after_start(self.stream.duration, self.stream.start_time)]
        durations[1] *= float(self.stream.time_base)
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


def _in_order(frames: Iterator[Any]) -> Iterator[Any]:
    """Frames that come in order with times that do not: each takes the smallest that is left."""
    waiting: list[Any] = []
    times: list[int] = []
    for frame in itertools.chain(frames, itertools.repeat(None, REORDERED_FRAMES)):
        if frame is not None:
            waiting.append(frame)
            heapq.heappush(times, frame.pts)
        if waiting and (frame is None or len(waiting) > REORDERED_FRAMES):
            shown = waiting.pop(0)
            shown.pts = heapq.heappop(times)
            yield shown


def _from_key_frame(packets: Iterator[Any], time: int) -> Iterator[Any]:
    """The packets from the last key frame at or before ``time`` on."""
    held: list[Any] = []
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None:
            if packet.pts > time:
                held.append(packet)
                break
            if not held or packet.pts > held[0].pts:  # two may have one time, and both count
                held = []
        held.append(packet)
    return itertools.chain(held, packets)
