"""Which packets of H.264 are fields, by their headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode.bitstream.h264_fields import FieldPackets
from tests.support.field_coded import write_field_coded
from tests.support.numbered import numbered_picture


def kinds(path: Path) -> tuple[bool, list[bool]]:
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        fields = FieldPackets(stream.codec_context.extradata)
        return fields.possible, [fields.holds_one(bytes(packet)) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_fields_behind_frames_are_found(suffix: str, tmp_path: Path) -> None:
    pictured = [numbered_picture(number, 64, 96) for number in range(12)]
    path = write_field_coded(tmp_path / f"v{suffix}", pictured, fields_from=7)
    possible, found = kinds(path)
    assert possible
    assert found[:7] == [False] * 7
    assert found.count(True) == 10


@pytest.mark.parametrize("options", ["cqm=flat", "cqm=jvt", "interlaced=1", "interlaced=1:cqm=jvt", "slices=4"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_what_an_encoder_writes_as_frames_has_none(options: str, pixels: str, tmp_path: Path) -> None:
    """Scaling lists and colour planes come before the bit that counts; interlaced x264 is MBAFF: a packet a frame."""
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"x264-params": options, "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pixels
        for number in range(12):
            picture = np.ascontiguousarray(numbered_picture(number, 64, 96))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    possible, found = kinds(tmp_path / "v.mp4")
    assert possible == options.startswith("interlaced")
    assert not any(found)


@pytest.mark.parametrize(
    "extradata", [b"", b"\1", b"\1\x64\0\x28\xff\xe1\0\4\x67\x64", b"\0\0\1\x67", b"\0\0\1\x67\x4d\0\x28"]
)
def test_damaged_parameters_are_no_fields(extradata: bytes) -> None:
    fields = FieldPackets(extradata)
    assert not fields.possible
    assert not fields.holds_one(b"\0\0\0\1\x65")
