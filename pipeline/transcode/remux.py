"""Cutting a video at its key frames without re-encoding."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from pipeline.decode.config import VideoInfo
from pipeline.decode.video_file import Video
from pipeline.transcode.clip_geometry import clip_spans
from pipeline.transcode.config import Damage, Output, StoredClip, TranscodeConfig


def cut_at_key_frames(
    video: Video,
    info: VideoInfo,
    times: npt.NDArray[np.float64],
    config: TranscodeConfig,
    corrupt_times: Sequence[float],
) -> Iterator[Output]:
    """Pieces of the original bytes, from the key frame at or before a span's start to the next one at or after its end.

    Pieces that abut end where the next one begins. Spans between the same key frames are one piece.
    """
    spans = clip_spans(info.duration_seconds, config.clip_seconds, config.hop_seconds)
    key_times = times[video.key_frames()]
    starts = key_times[np.maximum(np.searchsorted(key_times, [start for start, _ in spans], "right") - 1, 0)]
    if config.hop_seconds in (None, config.clip_seconds):
        ends = np.append(starts[1:], info.duration_seconds)
    else:
        bounds = np.append(key_times, info.duration_seconds)
        ends = bounds[np.searchsorted(key_times, [end - 1e-6 for _, end in spans])]
    pieces = dict.fromkeys(piece for piece in zip(starts.tolist(), ends.tolist(), strict=True) if piece[0] < piece[1])
    for start, end in pieces:
        spoilt = [time for time in corrupt_times if start <= time < end]
        if spoilt:
            yield Damage(start, end, f"the frame at {spoilt[0]:.3f} s is corrupt")
            continue
        content, num_frames = _copied_packets(video, start, end)
        yield StoredClip(start, end, info.width, info.height, info.fps, num_frames, content)


def _copied_packets(video: Video, start: float, end: float) -> tuple[bytes, int]:
    """The packets of a span in a new container: MP4, or Matroska for codecs that MP4 does not support."""
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
