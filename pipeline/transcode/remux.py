"""Cutting a video at its key frames without re-encoding."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from pipeline.decode.config import DecodeError, VideoInfo
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

    Pieces that abut end where the next one begins; in an open GOP a piece also has the key frame at its end, because
    the pictures before that refer to it. Spans between the same key frames are one piece.

    Raises:
        DecodeError: "unsupported", the packets have no presentation times.
    """
    if video.counts_only:
        raise DecodeError("unsupported", "an AVI with B-frames cannot be cut at key frames; set mode=transcode")
    spans = clip_spans(info.duration_seconds, config.clip_seconds, config.hop_seconds)
    keys = video.key_frames()
    bounds = np.append(keys, len(times))
    seconds = np.append(times, info.duration_seconds)
    starts = keys[np.maximum(np.searchsorted(times[keys], [start for start, _ in spans], "right") - 1, 0)]
    if config.hop_seconds in (None, config.clip_seconds):
        ends = np.append(starts[1:], len(times))
    else:
        ends = bounds[np.searchsorted(seconds[bounds], [end - 1e-6 for _, end in spans])]
    pieces = dict.fromkeys(piece for piece in zip(starts.tolist(), ends.tolist(), strict=True) if piece[0] < piece[1])
    for start, end in pieces:
        content, end, packets = _copied_packets(video, start, end)
        span = float(seconds[start]), float(seconds[end])
        spoilt = [time for time in corrupt_times if span[0] <= time < span[1]]
        if spoilt:
            yield Damage(*span, f"the frame at {spoilt[0]:.3f} s is corrupt")
        elif not video.has_fields and packets != end - start:
            yield Damage(*span, f"{packets} of {end - start} frames have a time stamp")
        else:
            yield StoredClip(*span, info.width, info.height, info.fps, end - start, content)


def _copied_packets(video: Video, start: int, end: int) -> tuple[bytes, int, int]:
    """The packets of frames [start, end) in a new container: MP4, or Matroska for codecs that MP4 does not support.

    Returns:
        The bytes, the end (one frame later in an open GOP), the number of packets.
    """
    times = video.times()
    until = int(times[end]) if end < len(times) else None
    packets, is_open = _piece(video.packets_from(int(times[start])), int(times[start]), until)
    for container_format in ("mp4", "matroska"):
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            return _muxed(packets, video.stream, container_format), end + is_open, len(packets)
    raise DecodeError("unsupported", f"{video.codec.name} cannot be cut without transcoding; set mode=transcode")


def _piece(packets: Iterator[Any], start: int, end: int | None) -> tuple[list[Any], bool]:
    """Packets from ``start`` to the key frame at ``end``; with this one where pictures before it refer to it."""
    # Leading pictures of the first key frame refer to what lies before the piece.
    piece = list(itertools.islice(packets, 1))
    if not piece:
        raise DecodeError("damaged", "no packet at the key frame of a piece")
    for packet in packets:
        if end is not None and packet.is_keyframe and packet.pts >= end:
            tail = [packet]
            for after in packets:
                tail.append(after)
                if after.pts > end + 2 * (after.duration or 1):
                    break
            leading = [number for number, after in enumerate(tail) if after.pts < end]
            return piece + tail[: leading[-1] + 1] if leading else piece, bool(leading)
        if packet.pts >= start:
            piece.append(packet)
    return piece, False


def _muxed(packets: Sequence[Any], stream: Any, container_format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        target: Any = container.add_stream_from_template(stream, opaque=True)
        first, order = packets[0].pts, sorted(packet.pts for packet in packets)
        delay = max(time - packet.pts for time, packet in zip(order, packets, strict=True))
        for time, packet in zip(order, packets, strict=True):
            copy = av.Packet(bytes(packet))
            # Decoding times are computed again: Matroska and damaged files may have none.
            copy.pts, copy.dts, copy.time_base = packet.pts - first + delay, time - first, packet.time_base
            copy.duration, copy.is_keyframe, copy.stream = packet.duration, packet.is_keyframe, target
            container.mux(copy)
    return file.getvalue()
