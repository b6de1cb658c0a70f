"""One pass over a video: every frame is decoded and checked, and the clips to store come out.

Runs in the child process (``pipeline.transcode.child``); imports little. Clips are H.264 at a constant frame
rate, made for random access: short GOPs, no B-frames, no CABAC and no deblocking (``tune=fastdecode``), one encoder
thread, so that equal input gives equal bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.decode.config import DecodeError, VideoInfo
from pipeline.decode.video_file import Video
from pipeline.decode.video_stream import MISSING_FRAMES_TOLERATED
from pipeline.transcode.clip_geometry import clip_spans, is_regular, output_rate, stored_size
from pipeline.transcode.config import Damage, Emit, Output, StoredClip, TranscodeConfig
from pipeline.transcode.h264_encoder import ClipEncoder, scaled_frame
from pipeline.transcode.remux import cut_at_key_frames


def process(video: Video, config: TranscodeConfig, emit: Emit) -> VideoInfo:
    """Check every frame of an open video and hand each clip to ``emit`` as soon as it is complete.

    Without ``clip_seconds`` any damage rejects the whole video. With it, damage costs the clips that it is in.

    Raises:
        DecodeError: the video cannot be used; clips that were emitted before stay valid.
    """
    video.square_pixels = config.square_pixels
    video.keep_damaged = keep = config.damage == "keep"
    video.keep_leading = keep and config.mode == "transcode"  # readers of original bytes leave them out
    info = video.info()
    if info.trimmed_frames and config.damage == "refuse":
        raise DecodeError("damaged", f"the first {info.trimmed_frames} frames refer to what was cut off")
    times = video.times_seconds()
    frames = _checked_frames(video, info, times)
    if config.mode != "transcode":
        return _kept_as_it_is(video, info, times, frames, config, emit)
    rate = output_rate(times, info.fps, config.target_fps)
    _refuse_repeats(rate, times, video.config.max_repeated_frames)
    spans = clip_spans(info.duration_seconds, config.clip_seconds, config.hop_seconds)
    size = stored_size(info.width, info.height, config.short_side)
    prepared = ((time, scaled_frame(frame, size, video.orientation), corrupt) for time, frame, corrupt in frames)
    ticks = at_constant_rate(prepared, rate, times, gaps=keep)
    clips = [_OpenClip(span, info.duration_seconds, rate, size, config) for span in spans]
    count = _cut(ticks, clips, config.clip_seconds is not None, emit)
    end = float(count / rate) if keep else info.duration_seconds
    return _once_decoded(info, video, count, end)


def _once_decoded(info: VideoInfo, video: Video, count: int, end_seconds: float) -> VideoInfo:
    duration = min(info.duration_seconds, end_seconds)
    return dataclasses.replace(info, num_frames=count, damaged_frames=video.damaged, duration_seconds=duration)


def _refuse_repeats(rate: Fraction, times: npt.NDArray[np.float64], most: int) -> None:
    """Before the cost: a few pictures with hours between them would become hundreds of thousands of frames.

    Raises:
        DecodeError: "max_repeated_frames".
    """
    repeated = float(times[-1] * rate) - len(times)
    if repeated > most:
        raise DecodeError.over("max_repeated_frames", repeated, most)


Checked = tuple[float, Any, bool]  # time in seconds, frame, whether the decoder called it corrupt


def _checked_frames(video: Video, info: VideoInfo, times: npt.NDArray[np.float64]) -> Iterator[Checked]:
    """``Video.checked_frames`` with their times; the last must come when the file promises it.

    Frames that are kept whatever they are have no mark of damage.

    Raises:
        DecodeError: "damaged", the decoder gave up or frames never came.
    """
    base = float(video.stream.time_base)
    first_time = video.times()[0]
    for number, (frame, damage) in enumerate(video.checked_frames()):
        by_stamp = frame.pts is not None and not video.counts_only
        time = (frame.pts - first_time) * base if by_stamp else times[min(number, len(times) - 1)]
        yield float(time), frame, bool(damage) and not video.keep_damaged
    if info.cut_off and not video.keep_damaged:
        raise DecodeError("damaged", info.cut_off)
    video.damaged = max(video.damaged, round(info.missing_seconds * video.fps))


def at_constant_rate(
    frames: Iterator[Checked], rate: Fraction, times: npt.NDArray[np.float64], *, gaps: bool = False
) -> Iterator[Checked]:
    """The frame on screen at every tick of a constant rate; a video that already has it passes frame by frame.

    Args:
        gaps: whether frames may be missing: the one before a gap stays on screen, and the last that came is the end.
    """
    own = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else float(rate)
    if is_regular(times) and abs(own / float(rate) - 1) < 0.02 and not gaps:
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
    last = shown[0] if shown is not None and gaps else float(times[-1])
    while shown is not None and (tick == 0 or float(tick / rate) < last + step - tolerance):
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
        self._encoder: ClipEncoder | None = None

    def is_over(self, time: float) -> bool:
        return time >= self._until - 1e-6

    def add(self, time: float, frame: Any, corrupt: bool) -> bool:
        """Take a frame; False when the clip has not begun yet."""
        if time < self.start_seconds - 1e-6:
            return False
        if corrupt:
            self.spoil(f"the frame at {time:.3f} s is corrupt")
        self._encoder = self._encoder or ClipEncoder(frame, self.rate, self.size, self.config)
        self._encoder.add(frame)
        self.num_frames += 1
        return True

    def spoil(self, message: str) -> None:
        self.damage = self.damage or message

    def finished(self) -> Output:
        """The clip; its encoder and bytes are let go, since a day of footage has thousands."""
        encoder, self._encoder = self._encoder, None
        if self.damage or encoder is None:
            return Damage(self.start_seconds, self.end_seconds, self.damage or "no frame can be decoded")
        end = self.end_seconds
        if self.config.damage == "keep":  # the last frames may never have come
            end = min(end, self.start_seconds + float((self.num_frames + MISSING_FRAMES_TOLERATED) / self.rate))
        return StoredClip(
            self.start_seconds,
            end,
            *self.size,
            fps=float(self.rate),
            num_frames=self.num_frames,
            video=encoder.finished(),
        )


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
    count, time = 0, 0.0
    for time, _, corrupt in frames:
        if corrupt and config.clip_seconds is None:
            raise DecodeError("damaged", f"frame {count} is corrupt")
        if corrupt:
            corrupt_times.append(time)
        count += 1
    frame_seconds = (MISSING_FRAMES_TOLERATED + 1) / info.fps if info.fps else info.duration_seconds
    info = _once_decoded(info, video, count, time + frame_seconds if video.keep_damaged else info.duration_seconds)
    if config.clip_seconds is None or info.duration_seconds <= config.clip_seconds:
        if corrupt_times:
            raise DecodeError("damaged", f"the frame at {corrupt_times[0]:.3f} s is corrupt")
        emit(StoredClip(0.0, info.duration_seconds, info.width, info.height, info.fps, count, None))
        return info
    for output in cut_at_key_frames(video, info, times, config, corrupt_times):
        emit(output)
    return info
