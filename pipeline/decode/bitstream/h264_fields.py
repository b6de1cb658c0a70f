"""Which packets of an H.264 stream hold one field, by the bits of their headers: a picture may be coded as two of them.

Only streams whose sequence parameter set allows it have such packets; they may begin at any picture. Source: ITU-T
H.264, 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header), Annex B.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_SLICES, _PARAMETERS = (1, 5), 7
_HEADER_BYTES = 256
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_CHROMA_444 = 3


class _Bits:
    """Bits of a NAL unit without its emulation prevention."""

    def __init__(self, unit: bytes) -> None:
        content = unit[1:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0")
        self._bits = "".join(f"{byte:08b}" for byte in content)
        self._at = 0

    def fixed(self, count: int) -> int:
        value = int(self._bits[self._at : self._at + count] or "0", 2)
        self._at += count
        return value

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code."""
        zeros = self._bits.find("1", self._at) - self._at
        if zeros < 0:
            raise ValueError("the header ends too early")
        self._at += zeros
        return self.fixed(zeros + 1) - 1

    def signed_golomb(self) -> int:
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


class FieldPackets:
    """Distinguishes packets that hold one field from those that hold a frame.

    Args:
        extradata: of the codec, Annex B or avcC.
    """

    def __init__(self, extradata: bytes) -> None:
        is_avcc = len(extradata) > 4 and extradata[0] == 1
        self._length_bytes = (extradata[4] & 3) + 1 if is_avcc else 0
        self._number_bits, self._plane_bits = 0, 0
        self.possible = False
        """Whether the stream may have any."""
        for unit in _split(extradata[6:], 2) if is_avcc else _split(extradata, 0):
            if unit[0] & 31 == _PARAMETERS:
                with contextlib.suppress(ValueError):  # damaged; the decoder decides about that
                    self._read_parameters(_Bits(unit))
                break

    def holds_one(self, packet: bytes) -> bool:
        """Whether all slices of a packet are of one field."""
        if not self.possible:
            return False
        slices = [unit for unit in _split(packet, self._length_bytes) if unit[0] & 31 in _SLICES]
        try:
            fields = {self._field_of(_Bits(unit)) for unit in slices}
        except ValueError:
            return False
        return len(fields) == 1 and "frame" not in fields

    def _field_of(self, bits: _Bits) -> str:
        for _ in range(3):  # first macroblock, type, picture parameters
            bits.golomb()
        bits.fixed(self._plane_bits + self._number_bits)
        if not bits.fixed(1):
            return "frame"
        return "bottom" if bits.fixed(1) else "top"

    def _read_parameters(self, bits: _Bits) -> None:
        profile = bits.fixed(24) >> 16
        bits.golomb()  # its id
        if profile in _HIGH_PROFILES:
            self._read_chroma(bits)
        self._number_bits = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.fixed(1)
            bits.golomb()
            bits.golomb()
            for _ in range(bits.golomb()):
                bits.golomb()
        bits.golomb()  # reference frames
        bits.fixed(1)
        bits.golomb()  # width
        bits.golomb()  # height
        self.possible = not bits.fixed(1)  # frame_mbs_only_flag

    def _read_chroma(self, bits: _Bits) -> None:
        lists = 8
        if bits.golomb() == _CHROMA_444:
            lists, self._plane_bits = 12, 2 * bits.fixed(1)
        bits.golomb()  # depths of luma and chroma
        bits.golomb()
        bits.fixed(1)
        if bits.fixed(1):
            for number in range(lists):
                if bits.fixed(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    scale = 8
    for _ in range(size):
        scale = (scale + bits.signed_golomb()) % 256
        if not scale:  # the last one holds for the rest
            return


def _split(content: bytes, length_bytes: int) -> Iterator[bytes]:
    """The NAL units, each with its length in front, or (0) in Annex B."""
    if not length_bytes:
        units = content.split(b"\0\0\1")
        yield from (unit for unit in units if unit.strip(b"\0"))
        return
    at = 0
    while at + length_bytes < len(content):
        size = int.from_bytes(content[at : at + length_bytes], "big")
        unit = content[at + length_bytes : at + length_bytes + size]
        if not unit:
            return
        yield unit
        at += length_bytes + size
