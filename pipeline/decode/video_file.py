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
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from pipeline.decode.bitstream.h264_fields import FieldPackets
from pipeline.decode.complaints import Complaints
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.video_stream import MISSING_FRAMES_TOLERATED, VideoStream

Picture = npt.NDArray[np.uint8]

SEEK_AHEAD_SECONDS = 5.0
PROGRESS_PACKETS = 32
BACKWARD_SECONDS_TOLERATED = 1.0
REORDERED_FRAMES = 16  # the most between the orders of decoding and of presentation (H.264)
MISSING_SECONDS = 0.1  # tolerated between the last frame and the end that a container states
FLOAT_SECONDS = 1e-6  # times that were computed may be off by this much


class Video(VideoStream):
    """An open video: its facts, and its frames by number or by time.

    Args:
        progress: called now and then during a pass over all packets or frames, which takes minutes in a long file.
    """

    def __init__(self, path: str, config: DecodeConfig, progress: Callable[[], None] = lambda: None) -> None:
        super().__init__(path, config, progress)
        self._times: npt.NDArray[np.int64] | None = None
        self._key_frames: npt.NDArray[np.int64] | None = None
        self._by_frames = False  # whether the times are those of decoded frames
        self._reformatter = VideoReformatter()

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
            missing_seconds=self._missing_seconds(times),
        )

    def _missing_seconds(self, times: npt.NDArray[np.int64]) -> float:
        """What the container promises behind the last frame that it holds; 0 where that is tolerably little."""
        frame_seconds = 1 / self.fps if self.fps else 0.1
        end = float(times[-1] * self.stream.time_base) + frame_seconds
        missing = self._promised_end() - end
        if not self._by_frames:
            missing = max(missing, (self._promised_frames() - len(times)) * frame_seconds)
        return missing if missing > max(MISSING_SECONDS, (MISSING_FRAMES_TOLERATED + 1) * frame_seconds) else 0.0

    def _promised_frames(self) -> int:
        frames: int = self.stream.frames - self.discarded - self.trimmed
        return frames

    def _promised_end(self) -> float:
        """The end time that a Matroska or WebM file states for its video: nothing else in it shows that it was cut off.

        The duration of a file with sound may be the sound's; then only the video's own tag counts.
        """
        if not self.container_name.startswith("matroska"):
            return 0.0
        tag = self.stream.metadata.get("DURATION", "")
        if re.fullmatch(r"\d+:\d\d:\d\d(\.\d+)?", tag):
            hours, minutes, seconds = tag.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        has_sound = any(stream.type == "audio" for stream in self.container.streams)
        return 0.0 if has_sound else (self.container.duration or 0) / av.time_base

    def times_seconds(self) -> npt.NDArray[np.float64]:
        """Presentation time of every frame, in seconds after the first. [frames]"""
        times = self.times()
        seconds: npt.NDArray[np.float64] = (times - times[0]) * float(self.stream.time_base)
        return seconds

    def times(self) -> npt.NDArray[np.int64]:
        """Presentation time of every frame, ascending, in the stream's time base. [frames]"""
        if self._times is None:
            self._by_frames = self._fields = self._fields or self._has_field_packets()
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
        if self._by_frames and len(self._times) > 1:
            span = float((self._times[-1] - self._times[0]) * self.stream.time_base)
            self._counted_fps = (len(self._times) - 1) / span
        self._key_frames = np.searchsorted(self._times, np.unique(key_times[key_times >= self._times[0]]))

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

    def checked_frames(self) -> Iterator[tuple[Any, str]]:
        """Like ``frames``, each with what the decoder finds wrong with it ('' for nothing); reports progress.

        Raises:
            DecodeError: "damaged", no frame came, or (unless ``keep_damaged``, which only counts) the decoder gave up
                or more than a tolerable few frames never came.
        """
        count, by_packets = 0, len(self.times())
        self._refused = 0
        self._from_start()  # what the decoder says while a cut stream is opened is no damage
        with Complaints(self.codec.name) as complaints:
            self._after_leading = complaints.new
            for frame in self.frames():
                damage = "corrupt" if frame.is_corrupt else complaints.new()
                self.damaged += bool(damage)
                yield frame, damage
                count += 1
                self._progress()
            if (complaint := complaints.new()) and not self.keep_damaged:
                raise DecodeError.quoting("damaged", f"after frame {count}: {complaint}")
        promised = by_packets if self._by_frames else max(by_packets, self._promised_frames())
        is_short = count < promised - MISSING_FRAMES_TOLERATED
        self.damaged += max(self._refused, promised - count if is_short else 0)
        if count == 0 or (is_short and not self.keep_damaged):
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

    def _picture(self, frame: Any, scale: float) -> Picture:
        height, width = (scaled(side, scale) for side in self._square_size)
        # One reformatter for all frames, and one thread: a new one per frame costs ten times as much (measured).
        picture: Any = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        return self._orientation.upright(picture) if self._orientation else picture

    def _packets(self) -> list[tuple[int, bool]]:
        """Time and key flag of every frame from a pass over the packets, which decodes nothing."""
        self._from_start()
        self._at_start = False
        newest = -math.inf
        found: list[tuple[int, bool]] = []
        untimed = 0
        try:
            for number, packet in enumerate(self.container.demux(self.stream), 1):
                if number % PROGRESS_PACKETS == 0:
                    self._progress()
                time = packet.pts if packet.pts is not None else packet.dts
                self.discarded += packet.is_discard
                untimed += time is None and packet.size > 0
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
        if not found and untimed:
            raise DecodeError(
                "unsupported", "no frame has a time stamp; put the raw stream into a container (MP4, MKV)"
            )
        if self._placeholder:
            found[:2] = [(found[1][0], found[0][1])]
        if self.container_name == "avi" and found:  # a tick is a frame; where packets are missing the last one stays
            self.discarded = max(0, max(found)[0] - min(found)[0] + 1 - len(found))
        return found

    def _hidden(self, packet: Any) -> bool:
        """A VP8 packet may hold a picture that others refer to and that is never shown (RFC 6386, 9.1)."""
        return self.codec.name == "vp8" and not bytes(packet)[0] & 0x10

    def _has_field_packets(self) -> bool:
        """Whether some packet of H.264 is a field: such may come behind any number of frames."""
        if self.codec.name != "h264" or not (fields := FieldPackets(self.codec.extradata or b"")).possible:
            return False
        self._from_start()
        self._at_start = False
        with contextlib.suppress(av.error.FFmpegError):  # `_packets` meets it again
            for packet in self.container.demux(self.stream):
                self._progress()
                if fields.holds_one(bytes(packet)):
                    return True
        return False

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


def scaled(side: int, scale: float) -> int:
    """A side of the picture shrunk to its share, at least one pixel."""
    return max(1, math.ceil(side * scale))


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
