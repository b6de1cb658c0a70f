"""Videos of hours, made in seconds: one minute is encoded, and its packets are repeated."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

MINUTE = 60


def write_long(path: Path, minutes: int, *, size: tuple[int, int], fps: int, noise: int = 24, gop: int = 250) -> Path:
    """Write an H.264 MP4 of so many minutes.

    Args:
        size: height and width.
        noise: strength of the noise over a moving square, 0 to 255; more is more bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        minute = Path(folder) / "minute.mp4"
        _encode(minute, _pictures(MINUTE * fps, size, noise), size, fps, gop)
        _repeat(minute, path, minutes)
    return path


def _pictures(count: int, size: tuple[int, int], noise: int) -> Iterator[np.ndarray]:
    """uint8 ``[H, W, 3]``."""
    draw, (height, width) = np.random.default_rng(0), size
    for number in range(count):
        picture = draw.integers(0, noise + 1, (height, width, 3), np.uint8)
        top, left = number % (height // 2), (3 * number) % (width // 2)
        picture[top : top + height // 2, left : left + width // 2] += 200 - noise // 2
        yield picture


def _encode(path: Path, pictures: Iterator[np.ndarray], size: tuple[int, int], fps: int, gop: int) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency"}  # no B-frames: packets stand in order of time
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _repeat(source: Path, target: Path, times: int) -> None:
    with av.open(str(source)) as one, av.open(str(target), "w") as container:
        stream = one.streams.video[0]
        copied: Any = container.add_stream_from_template(stream)
        length = round(MINUTE / stream.time_base)
        for turn in range(times):
            one.seek(0)
            for packet in one.demux(stream):
                if packet.dts is None:  # the end
                    continue
                packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                packet.stream = copied
                container.mux(packet)
