"""H.264 whose packets are fields (PAFF), written bit by bit with uncompressed macroblocks: no encoder here makes it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

FPS = 25
GOP = 10


class _Bits:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def fixed(self, *values: tuple[int, int]) -> _Bits:
        """Values with their number of bits."""
        for value, count in values:
            self.bits += [value >> bit & 1 for bit in range(count - 1, -1, -1)]
        return self

    def golomb(self, *values: int) -> _Bits:
        """Unsigned Exp-Golomb codes."""
        for value in values:
            length = (value + 1).bit_length()
            self.fixed((0, length - 1), (value + 1, length))
        return self

    def align(self) -> _Bits:
        self.bits += [0] * (-len(self.bits) % 8)
        return self

    def unit(self, kind: int) -> bytes:
        """A NAL unit in Annex B."""
        payload = np.packbits(self.fixed((1, 1)).align().bits).tobytes()
        escaped, zeros = bytearray(), 0
        for byte in payload:
            if zeros >= 2 and byte <= 3:
                escaped.append(3)
                zeros = 0
            escaped.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([3 << 5 | kind]) + bytes(escaped)


def _parameters(height: int, width: int) -> bytes:
    sequence = _Bits().fixed((77, 8), (0, 8), (40, 8)).golomb(0, 4, 0, 4, 1).fixed((0, 1))
    sequence.golomb(width // 16 - 1, height // 32 - 1).fixed((0, 2), (1, 1), (0, 1), (0, 1))
    picture = _Bits().golomb(0, 0).fixed((0, 2)).golomb(0, 0, 0).fixed((0, 3)).golomb(0, 0, 0).fixed((1, 1), (0, 2))
    return sequence.unit(7) + picture.unit(8)


def _picture(planes: Sequence[npt.NDArray[np.uint8]], number: int, field: int | None, start: int) -> bytes:
    """One field (0: top, 1: bottom) or frame as a picture; ``number`` of the frame in its GOP, ``start`` of the GOP."""
    bottom = field or 0
    is_start = number == 0 and not bottom
    bits = _Bits().golomb(0, 7, 0).fixed((number, 8), *(((0, 1),) if field is None else ((1, 1), (bottom, 1))))
    if is_start:
        bits.golomb(start % 2)
    bits.fixed((2 * number + bottom, 8), (0, 2 if is_start else 1)).golomb(0, 1)
    height, width = planes[0].shape
    for row in range(height // 16):
        for column in range(width // 16):
            bits.golomb(25).align()
            for plane, side in zip(planes, (16, 8, 8), strict=True):
                block = plane[row * side : (row + 1) * side, column * side : (column + 1) * side]
                bits.bits += np.unpackbits(np.maximum(block, 1)).tolist()
    return bits.unit(5 if is_start else 1)


def _planes(picture: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Y, U and V of an RGB picture."""
    height, width = picture.shape[:2]
    packed = av.VideoFrame.from_ndarray(picture, format="rgb24").to_ndarray(format="yuv420p").reshape(-1)
    luma, *chroma = np.split(packed, [height * width, height * width * 5 // 4])
    return [luma.reshape(height, width), *(plane.reshape(height // 2, width // 2) for plane in chroma)]


def write_field_coded(path: Path, frames: Sequence[npt.NDArray[np.uint8]], fields_from: int = 0) -> Path:
    """Two packets a frame, from the frame ``fields_from`` on. ``frames`` RGB [H, W, 3], sides multiples of 32."""
    height, width = frames[0].shape[:2]
    begin = _parameters(height, width) + _picture(_planes(frames[0]), 0, None, 0)
    with av.open(io.BytesIO(begin), format="h264") as raw, av.open(str(path), "w") as container:
        stream: Any = container.add_stream_from_template(raw.streams.video[0], opaque=True)
        for number, picture in enumerate(frames):
            planes = _planes(picture)
            for field in (0, 1) if number >= fields_from else (None,):
                part = planes if field is None else [plane[field::2] for plane in planes]
                content = _picture(part, number % GOP, field, number // GOP)
                is_start = number % GOP == 0 and not field
                packet = av.Packet((_parameters(height, width) if is_start else b"") + content)
                packet.pts = packet.dts = 2 * number + (field or 0)
                packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 2 * FPS), is_start, stream
                container.mux(packet)
    return path
