"""An open container and the decoder of its video stream: where to seek, what to decode, which times to trust.

Containers differ in whether they have an index, where their clock begins, and what they call a key frame; all of that
is settled here. `video_file` counts frames on top of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import stat
from collections.abc import Callable, Iterator
from typing import Any, Self, cast

import av
import av.error

from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.decode.media import open_media, side_by_side, status_of
from pipeline.decode.orientation import Orientation

# Where a frame is missing its neighbour stands in: an empty packet at the end (HMDB51), a repeat packet (Theora).
MISSING_FRAMES_TOLERATED = 2
FIELD_SAMPLE_PACKETS = 64
MOST_PACKETS_HELD = 4096  # a minute and more of video between key frames
SQUARE_TOLERANCE = 0.02  # encoders state the rounding of a size as an aspect: 426 x 240 with 640:639


class VideoStream:
    """The video stream of a file, opened; frames come as PyAV gives them, each with a time.

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
        self._origin: int | None = None
        self._orientation: Orientation | None = None
        self._fields = False  # whether packets may be fields; known once a frame is decoded
        self._counted_fps: float | None = None  # by decoded frames, where packets are fields
        self._after_leading: Callable[[], object] = lambda: None
        self.discarded = 0  # packets that an edit list hides, or that repeat the last frame
        self.begins_amid_gop = False  # whether packets come before the first key frame; known once a frame is decoded
        self.trimmed = 0  # leading pictures that cannot be decoded: what they refer to was cut off
        self.keep_damaged = False  # whether decoding continues behind what cannot be decoded
        self.keep_leading = False  # whether pictures count that refer to what was cut off before the first key frame
        self._refused = 0  # packets that the decoder refused, where it continued
        self.damaged = 0  # frames that the decoder called damaged, or that never came

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    @property
    def fps(self) -> float:
        """Frames a second; 0.0 where the stream states none."""
        if self._counted_fps is not None:
            return self._counted_fps
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

    @property
    def stated_seconds(self) -> float:
        """The duration that the container states, from its start; 0 where it states none."""
        return self._after_start(self.container.duration, self.container.start_time) / av.time_base

    def _after_start(self, duration: int | None, start: int | None) -> int:
        states_end = self.container_name.startswith(("matroska", "asf"))
        return max(0, (duration or 0) - (max(0, start or 0) if states_end else 0))

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

    def packets_from(self, time: int) -> Iterator[Any]:
        """The packet of the key frame at ``time``, and all after it in decoding order."""
        found = self._approach(time, time, self._timed_packets)
        return itertools.dropwhile(lambda packet: not packet.is_keyframe or packet.pts < time, found)

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
                        self.begins_amid_gop |= from_start
                        continue
                    key_time = packet.pts if packet.pts is not None else packet.dts or 0
                frames = self._frames_of(packet)
                if self.trimmed and packet.pts is not None and packet.pts < self.origin:
                    self._after_leading()
                for frame in frames:
                    if last is None and self._is_left_out(frame, key_time or 0):
                        continue
                    if frame.pts is None:
                        frame.pts = 0 if last is None else last + step
                    if self._orientation is None:
                        self._learn_from(frame)
                    last = frame.pts
                    yield frame
        except av.error.FFmpegError as error:
            self._refuse(error, last is not None)
        if key_time is None and from_start and not anywhere:  # no packet is called a key frame
            self._from_start()
            yield from self._decoded(anywhere=True)

    def _refuse(self, error: av.error.FFmpegError, has_frames: bool) -> None:
        if not (self.keep_damaged and has_frames):
            raise DecodeError("damaged", f"cannot be decoded: {error.strerror}") from error

    def _is_left_out(self, frame: Any, key_time: int) -> bool:
        """Whether it is a leading picture that refers to what was cut off."""
        is_leading = frame.pts is not None and frame.pts < key_time
        return is_leading and frame.is_corrupt and not self.keep_leading

    def _frames_of(self, packet: Any) -> list[Any]:
        try:
            frames: list[Any] = packet.decode()
        except av.error.FFmpegError:
            if not self.keep_damaged:
                raise
            self._refused += 1
            return []
        return frames

    def _learn_from(self, frame: Any) -> None:
        """What only a decoded frame shows: which way up it is, and whether packets may be fields."""
        self._orientation = Orientation.of(frame)
        if frame.interlaced_frame and self.codec.name == "h264":
            self._fields = self._packets_are_fields()

    def _packets_are_fields(self) -> bool:
        """Whether an interlaced stream has more packets than frames, by its first few in a container of their own.

        Most interlaced H.264 has a packet a frame, and needs no pass that decodes all of it for an index.
        """
        packets = frames = 0
        with side_by_side(self.path), open_media(self.path) as container:
            stream = cast(Any, container.streams.best("video"))
            stream.codec_context.thread_count = 1
            for packet in itertools.islice(container.demux(stream), FIELD_SAMPLE_PACKETS):
                packets += packet.size > 0
                frames += len(packet.decode())
            with contextlib.suppress(av.error.EOFError):  # the end was among them
                frames += len(stream.codec_context.decode(None))
        return packets > frames + max(MISSING_FRAMES_TOLERATED, frames // 4)

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
        self.container = open_media(self.path)
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


def _check_file(path: str, config: DecodeConfig) -> None:
    try:
        status = status_of(path)
    except FileNotFoundError as error:
        raise DecodeError("missing", "no such file") from error
    except OSError as error:
        raise DecodeError("unreadable", str(error.strerror)) from error
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not_a_file", "a folder, a device or a pipe")
    if size == 0:
        raise DecodeError("empty", "the file has 0 bytes")
    if size > config.max_bytes:
        raise DecodeError.over("max_bytes", size, config.max_bytes)


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
        if len(held) > MOST_PACKETS_HELD:  # so rare are key frames: what comes before ``time`` is decoded, too
            break
    return itertools.chain(held, packets)
