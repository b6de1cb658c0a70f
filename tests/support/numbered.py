"""Videos whose every frame says its own number: eight cells, black or white, over the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

ROWS, COLUMNS = 2, 4
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4", ".mkv": "libx264", ".ts": "libx264"}


def numbered_picture(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Number 0 to 255 as 2 x 4 cells, the lowest bit at the upper left. uint8 [H, W, 3]"""
    bits = (number >> np.arange(ROWS * COLUMNS)) & 1
    cells = (bits * 200 + 28).reshape(ROWS, COLUMNS).astype(np.uint8)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(cells[rows][:, columns][..., None], 3, axis=2)


def read_number(picture: npt.NDArray[np.uint8]) -> int:
    """The number of a whole picture, whatever its size."""
    height, width = picture.shape[:2]
    rows = (2 * np.arange(ROWS) + 1) * height // (2 * ROWS)
    columns = (2 * np.arange(COLUMNS) + 1) * width // (2 * COLUMNS)
    bits = picture[rows][:, columns].mean(axis=-1).ravel() > 128
    return int((bits << np.arange(ROWS * COLUMNS)).sum())


def read_numbers(clip: npt.NDArray[np.uint8]) -> list[int]:
    """The numbers of the frames of a clip [T, H, W, 3]."""
    return [read_number(picture) for picture in clip]


def write_numbered(
    path: Path,
    frames: int = 40,
    *,
    first: int = 0,
    size: tuple[int, int] = (64, 96),
    fps: int = 25,
    gop: int = 12,
    b_frames: int = 2,
    rotation: int = 0,
    times: Sequence[float] | None = None,
) -> Path:
    """Write frames numbered from ``first``; codec by the file's ending; ``times`` in seconds for a variable rate."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(CODECS[path.suffix], rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if path.suffix == ".webm":
            stream.options = {"cpu-used": "8", "deadline": "realtime"}
        if CODECS[path.suffix] == "libx264":
            stream.options = {"x264-params": "mbtree=0"}  # else the bytes differ now and then on a busy machine
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = base
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(first + number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
