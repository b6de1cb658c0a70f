"""One pass over a video: every frame is decoded and checked, and the clips to store come out.

Runs in the isolated child of ``pipeline.transcode_process``; imports little. Clips are H.264 at a constant frame
rate, made for random access: short GOPs, no B-frames, no CABAC and no deblocking (``tune=fastdecode``), one encoder
thread, so that equal input gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from pipeline.decode_config import DecodeError, VideoInfo
from pipeline.video_file import MISSING_FRAMES_TOLERATED, Video

Mode = Literal["transcode", "passthrough", "reference"]

LONGEST_RATE_DENOMINATOR = 1001  # 30000/1001 and its kin
IRREGULAR_SHARE = 0.5  # a frame's step may differ so much from the median (time bases of 1 ms round 33.37 to 33)
MISSING_SECONDS_TOLERATED = 0.1
MIN_SIDE = 16  # pixels; below this H.264 has less than one macroblock


@dataclasses.dataclass(frozen=True)
class TranscodeConfig:
    """What is stored of each video."""

    mode: Mode = "transcode"
    """`transcode`: H.264 made for fast random access; `passthrough`: the original bytes; `reference`: no bytes, rows
    point to the original objects."""
    short_side: int = 256
    """Pixels of the shorter side; smaller videos are not enlarged."""
    gop: int = 32
    """Frames from one key frame to the next."""
    crf: int = 22
    """x264's constant rate factor: smaller is better and larger. At 22 the mean PSNR is above 36 dB (see README)."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """x264's preset: slower gives fewer bytes for the same quality."""
    target_fps: float | None = None
    """Frames per second to store, where the video has more. At the sampling rate a clip is consecutive frames."""
    clip_seconds: float | None = None
    """Length of the clips that videos are cut into; default: a video is one clip. The last clip takes a rest that is
    shorter than half of this."""
    hop_seconds: float | None = None
    """From one clip's start to the next one's; default: clip_seconds. Passthrough cuts at key frames."""

    def __post_init__(self) -> None:
        if self.short_side < MIN_SIDE or self.short_side % 2:
            raise ValueError(f"short_side={self.short_side}: must be even and at least {MIN_SIDE}; use 256")
        if not 0 < self.crf <= 51:
            raise ValueError(f"crf={self.crf}: x264 takes 1 (best) to 51; use 22")
        if self.gop < 1:
            raise ValueError(f"gop={self.gop}: must be positive; use 32")
        for name in ("target_fps", "clip_seconds", "hop_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: must be positive; leave it out for none")
        if self.hop_seconds is not None and self.clip_seconds is None:
            raise ValueError(f"hop_seconds={self.hop_seconds}: needs clip_seconds; set both or neither")
        if self.clip_seconds is not None and self.mode == "reference":
            # Readers of a reference decode the whole object and could not tell the span.
            raise ValueError("mode=reference: stores whole videos; leave clip_seconds out or choose another mode")


@dataclasses.dataclass(frozen=True)
class StoredClip:
    """One clip to store: its span in the source, its own facts, its bytes (None: the source's own bytes)."""

    start_seconds: float
    end_seconds: float
    width: int
    height: int
    fps: float
    num_frames: int
    video: bytes | None


@dataclasses.dataclass(frozen=True)
class Damage:
    """A span of the source that could not be stored while others could."""

    start_seconds: float
    end_seconds: float
    message: str


Output = StoredClip | Damage
Emit = Callable[[Output], None]


def process(video: Video, config: TranscodeConfig, emit: Emit, progress: Callable[[], None]) -> VideoInfo:
    """Check every frame of an open video and hand each clip to ``emit`` as soon as it is complete.

    Without ``clip_seconds`` any damage refuses the whole video. With it, damage costs the clips that it is in.

    Raises:
        DecodeError: the video cannot be used; clips that were emitted before stay valid.
    """
    info = VideoInfo(**video.info())
    times = video.times_seconds()
    frames = _checked_frames(video, times, progress)
    if config.mode != "transcode":
        return _kept_as_it_is(video, info, times, frames, config, emit)
    rate = output_rate(times, info.fps, config.target_fps)
    spans = clip_spans(info.duration_seconds, config.clip_seconds, config.hop_seconds)
    size = stored_size(info.width, info.height, config.short_side)
    shown = video.quarter_turns
    prepared = ((time, _scaled_frame(frame, size, shown), corrupt) for time, frame, corrupt in frames)
    ticks = at_constant_rate(prepared, rate, times)
    clips = [_OpenClip(span, info.duration_seconds, rate, size, config) for span in spans]
    count = _cut(ticks, clips, config.clip_seconds is not None, emit)
    return dataclasses.replace(info, num_frames=count)


def output_rate(times: npt.NDArray[np.float64], fps: float, target_fps: float | None) -> Fraction:
    """Frames per second to store: the video's own, or the target where that is less.

    Args:
        times: presentation time of every frame, seconds, ascending.
        fps: what the header says; 0 when it says nothing.
    """
    steps = np.diff(times)
    measured = [1 / step for step in (steps.mean(), np.median(steps)) if step > 0] if len(steps) else []
    plausible = fps > 0 and (not measured or any(0.9 < fps / rate < 1.1 for rate in measured))
    own = Fraction(fps if plausible else (measured or [1.0])[0]).limit_denominator(LONGEST_RATE_DENOMINATOR)
    if target_fps is None or target_fps >= own:
        return max(own, Fraction(1, LONGEST_RATE_DENOMINATOR))
    return Fraction(target_fps).limit_denominator(LONGEST_RATE_DENOMINATOR)


def is_regular(times: npt.NDArray[np.float64]) -> bool:
    """Whether frames follow each other in equal steps, give or take the rounding of the time base."""
    if len(times) < 3:
        return True
    steps = np.diff(times)
    median = float(np.median(steps))
    return bool((np.abs(steps - median) <= IRREGULAR_SHARE * median).all())


def clip_spans(
    duration_seconds: float, clip_seconds: float | None, hop_seconds: float | None
) -> list[tuple[float, float]]:
    """Start and end of every clip; together they cover the video when hops are no longer than clips."""
    if clip_seconds is None or duration_seconds <= clip_seconds:
        return [(0.0, duration_seconds)]
    hop = hop_seconds or clip_seconds
    starts = np.arange(0.0, duration_seconds - clip_seconds / 2, hop)
    ends = np.minimum(starts + clip_seconds, duration_seconds)
    if duration_seconds - ends[-1] < clip_seconds / 2:
        ends[-1] = duration_seconds
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height to store: aspect ratio kept, never enlarged, even."""
    scale = min(1.0, short_side / min(width, height))
    return _even(width * scale), _even(height * scale)


def _even(length: float) -> int:
    return max(MIN_SIDE, 2 * round(length / 2 - 1e-9))


Checked = tuple[float, Any, bool]  # time in seconds, frame, whether the decoder called it corrupt


def _checked_frames(video: Video, times: npt.NDArray[np.float64], progress: Callable[[], None]) -> Iterator[Checked]:
    """Every frame with its time; at the end the count must be what the packets promised.

    Raises:
        DecodeError: "damaged", the decoder gave up or frames never came.
    """
    base = float(video.stream.time_base)
    first_time = video.times()[0]
    count = 0
    for frame in video.frames():
        by_stamp = frame.pts is not None and not video.counts_only
        time = (frame.pts - first_time) * base if by_stamp else times[min(count, len(times) - 1)]
        yield float(time), frame, bool(frame.is_corrupt)
        count += 1
        progress()
    promised = max(len(times), video.stream.frames - video.discarded)
    if count == 0 or count < promised - MISSING_FRAMES_TOLERATED:
        raise DecodeError("damaged", f"{count} of {promised} frames can be decoded")
    end, promised_end = float(times[-1]), _promised_seconds(video)
    if end < promised_end - max(MISSING_SECONDS_TOLERATED, (MISSING_FRAMES_TOLERATED + 2) / (video.fps or 10)):
        raise DecodeError("damaged", f"the file ends after {end:.2f} of {promised_end:.2f} s")


def _promised_seconds(video: Video) -> float:
    """How long a Matroska or WebM file says its video is: a file that was cut off says nothing else of it.

    The duration of a file with sound may be the sound's; then only the video's own tag counts.
    """
    if not video.container_name.startswith("matroska"):
        return 0.0
    tag = video.stream.metadata.get("DURATION", "")
    if re.fullmatch(r"\d+:\d\d:\d\d(\.\d+)?", tag):
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    has_sound = any(stream.type == "audio" for stream in video.container.streams)
    return 0.0 if has_sound or video.container.duration is None else video.container.duration / av.time_base


def at_constant_rate(frames: Iterator[Checked], rate: Fraction, times: npt.NDArray[np.float64]) -> Iterator[Checked]:
    """The frame on screen at every tick of a constant rate; a video that already has it passes frame by frame."""
    own = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else float(rate)
    if is_regular(times) and abs(own / float(rate) - 1) < 0.02:
        for number, (_, frame, corrupt) in enumerate(frames):
            yield float(number / rate), frame, corrupt
        return
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / float(rate)
    tolerance = 0.5 * min(step, 1 / float(rate))
    tick = 0
    shown: Checked | None = None
    for current in frames:
        while shown is not None and float(tick / rate) < current[0] - tolerance:
            yield float(tick / rate), shown[1], shown[2]
            tick += 1
        shown = current
    while shown is not None and (tick == 0 or float(tick / rate) < float(times[-1]) + step - tolerance):
        yield float(tick / rate), shown[1], shown[2]
        tick += 1


def _cut(ticks: Iterator[Checked], clips: list[_OpenClip], damage_costs_clips: bool, emit: Emit) -> int:
    """Deal frames to the clips that they belong to, and hand over each clip when the next frame lies behind it."""
    waiting = list(clips)
    count = 0
    try:
        for time, frame, corrupt in ticks:
            if corrupt and not damage_costs_clips:
                raise DecodeError("damaged", f"frame {count} is corrupt")
            while waiting and waiting[0].is_over(time):
                emit(waiting.pop(0).finished())
            for clip in waiting:
                if not clip.add(time, frame, corrupt):
                    break
            count += 1
    except DecodeError as error:
        if not damage_costs_clips:
            raise
        for clip in waiting:
            clip.spoil(error.message)
    for clip in waiting:
        emit(clip.finished())
    return count


class _OpenClip:
    """A clip that is being encoded."""

    def __init__(
        self,
        span: tuple[float, float],
        duration_seconds: float,
        rate: Fraction,
        size: tuple[int, int],
        config: TranscodeConfig,
    ) -> None:
        self.start_seconds, self.end_seconds = span
        # The clip that reaches the end takes whatever still comes: durations are rounded.
        self._until = self.end_seconds if self.end_seconds < duration_seconds - 1e-6 else float("inf")
        self.rate = rate
        self.size = size
        self.config = config
        self.num_frames = 0
        self.damage = ""
        self._encoder: _Encoder | None = None

    def is_over(self, time: float) -> bool:
        return time >= self._until - 1e-6

    def add(self, time: float, frame: Any, corrupt: bool) -> bool:
        """Take a frame; False when the clip has not begun yet."""
        if time < self.start_seconds - 1e-6:
            return False
        if corrupt:
            self.spoil(f"the frame at {time:.3f} s is corrupt")
        self._encoder = self._encoder or _Encoder(frame, self.rate, self.size, self.config)
        self._encoder.add(frame)
        self.num_frames += 1
        return True

    def spoil(self, message: str) -> None:
        self.damage = self.damage or message

    def finished(self) -> Output:
        if self.damage or self._encoder is None:
            return Damage(self.start_seconds, self.end_seconds, self.damage or "no frame can be decoded")
        return StoredClip(
            self.start_seconds,
            self.end_seconds,
            *self.size,
            fps=float(self.rate),
            num_frames=self.num_frames,
            video=self._encoder.finished(),
        )


class _Encoder:
    """H.264 in MP4, in memory."""

    def __init__(self, like: Any, rate: Fraction, size: tuple[int, int], config: TranscodeConfig) -> None:
        self.file = io.BytesIO()
        # bitexact: no version or time in the file; faststart is not needed where whole files are read.
        self.container = av.open(self.file, "w", format="mp4", options={"fflags": "+bitexact"})
        self.stream: Any = self.container.add_stream("libx264", rate=rate, options=_x264_options(config))
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        codec = self.stream.codec_context
        codec.thread_count = 1
        codec.gop_size = config.gop
        codec.max_b_frames = 0
        codec.flags |= av.codec.context.Flags.bitexact
        codec.colorspace, codec.color_range = like.colorspace, like.color_range
        self.pts = 0
        self.time_base = 1 / rate

    def add(self, frame: Any) -> None:
        """Append a frame (yuv420p, of the clip's size); frames are not changed, several clips may share them."""
        frame.pts, frame.time_base = self.pts, self.time_base
        frame.pict_type = av.video.frame.PictureType.NONE
        self.pts += 1
        self.container.mux(self.stream.encode(frame))

    def finished(self) -> bytes:
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()


def _x264_options(config: TranscodeConfig) -> dict[str, str]:
    # x264's macroblock tree (its assembly, seen at 96 pixels width) gives different bytes from run to run.
    fixed = {"tune": "fastdecode", "x264-params": "mbtree=0:log-level=error"}
    return {"preset": config.preset, "crf": str(config.crf), **fixed}


def _scaled_frame(frame: Any, size: tuple[int, int], quarter_turns: int) -> Any:
    """As yuv420p of the stored size, turned upright."""
    width, height = size[::-1] if quarter_turns % 2 else size
    scaled = frame.reformat(width, height, "yuv420p", interpolation=Interpolation.AREA)
    if quarter_turns % 4 == 0:
        return scaled
    turned = av.VideoFrame.from_ndarray(_turned_planes(scaled, quarter_turns), format="yuv420p")
    turned.colorspace, turned.color_range = scaled.colorspace, scaled.color_range
    return turned


def _turned_planes(frame: Any, quarter_turns: int) -> npt.NDArray[np.uint8]:
    """Planes [H, W] and two of [H/2, W/2], each turned, in PyAV's packed layout ``[3 H / 2, W]``."""
    packed = frame.to_ndarray()
    height, width = frame.height, frame.width
    planes = np.split(packed.reshape(-1), [height * width, height * width * 5 // 4])
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    turned = [np.rot90(plane.reshape(shape), quarter_turns) for plane, shape in zip(planes, shapes, strict=True)]
    new_width = height if quarter_turns % 2 else width
    return np.concatenate([plane.reshape(-1) for plane in turned]).reshape(-1, new_width)


def _kept_as_it_is(
    video: Video,
    info: VideoInfo,
    times: npt.NDArray[np.float64],
    frames: Iterator[Checked],
    config: TranscodeConfig,
    emit: Emit,
) -> VideoInfo:
    """Check every frame, then store the original bytes, or pieces of them cut at key frames."""
    corrupt_times = []
    count = 0
    for time, _, corrupt in frames:
        if corrupt and config.clip_seconds is None:
            raise DecodeError("damaged", f"frame {count} is corrupt")
        if corrupt:
            corrupt_times.append(time)
        count += 1
    info = dataclasses.replace(info, num_frames=count)
    if config.clip_seconds is None or info.duration_seconds <= config.clip_seconds:
        if corrupt_times:
            raise DecodeError("damaged", f"the frame at {corrupt_times[0]:.3f} s is corrupt")
        emit(StoredClip(0.0, info.duration_seconds, info.width, info.height, info.fps, count, None))
        return info
    for output in cut_at_key_frames(video, info, times, config, corrupt_times):
        emit(output)
    return info


def cut_at_key_frames(
    video: Video,
    info: VideoInfo,
    times: npt.NDArray[np.float64],
    config: TranscodeConfig,
    corrupt_times: Sequence[float],
) -> Iterator[Output]:
    """Pieces of the original bytes; each begins at the key frame at or before its span's start."""
    spans = clip_spans(info.duration_seconds, config.clip_seconds, config.hop_seconds)
    key_times = times[video.key_frames()]
    starts = key_times[np.maximum(np.searchsorted(key_times, [start for start, _ in spans], "right") - 1, 0)]
    ends = [
        float(next_start) if end >= following - 1e-6 and config.hop_seconds in (None, config.clip_seconds) else end
        for (_, end), (following, _), next_start in zip(spans, spans[1:], starts[1:], strict=False)
    ]
    pieces = [
        (float(start), end) for start, end in zip(starts, [*ends, info.duration_seconds], strict=True) if start < end
    ]
    for start, end in pieces:
        spoilt = [time for time in corrupt_times if start <= time < end]
        if spoilt:
            yield Damage(start, end, f"the frame at {spoilt[0]:.3f} s is corrupt")
            continue
        content, num_frames = _copied_packets(video, start, end)
        yield StoredClip(start, end, info.width, info.height, info.fps, num_frames, content)


def _copied_packets(video: Video, start: float, end: float) -> tuple[bytes, int]:
    """The packets of a span in a container of their own: MP4, else Matroska for what MP4 does not hold."""
    for container_format in ("mp4", "matroska"):
        try:
            return _remuxed(video, start, end, container_format)
        except (av.error.FFmpegError, ValueError):
            if container_format == "matroska":
                raise
    raise AssertionError


def _remuxed(video: Video, start: float, end: float, container_format: str) -> tuple[bytes, int]:
    base = float(video.stream.time_base)
    first = int(video.times()[0])
    file = io.BytesIO()
    with av.open(video.path) as source, av.open(file, "w", format=container_format) as container:
        stream = source.streams[video.stream.index]
        target: Any = container.add_stream_from_template(stream)
        source.seek(first + round(start / base), stream=stream, backward=True)
        count, begun, shift = 0, False, 0
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            time = (packet.pts - first) * base
            if packet.is_keyframe and time >= end - base / 2:
                break
            if not begun and not (packet.is_keyframe and time >= start - base / 2):
                continue
            if not begun:
                begun, shift = True, packet.dts
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = target
            container.mux(packet)
            count += 1
    return file.getvalue(), count
