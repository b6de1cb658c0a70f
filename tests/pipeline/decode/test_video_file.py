"""One open video, without a child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode.child import render
from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, TimeView
from pipeline.decode.video_file import Video
from pipeline.sampling import CropBox
from tests.support.field_coded import write_field_coded
from tests.support.numbered import numbered_picture, read_numbers, write_numbered
from tests.support.transcoding import one_clip, pictures


def test_a_pass_over_all_packets_tells_that_it_goes_on(tmp_path: Path) -> None:
    """In a long file without an index it takes minutes, before the first frame is decoded."""
    told: list[int] = []
    path = write_numbered(tmp_path / "v.mkv", 100)
    with Video(str(path), DecodeConfig(), lambda: told.append(1)) as video:
        assert len(video.times()) == 100
    assert len(told) == 3


# Kinds of video in which packets, headers and frames say different things.


SIZE = (64, 96)


def read(path: Path, view: FrameView | TimeView) -> np.ndarray:
    output = np.empty((len(view.keys), *view.size, 3), np.uint8)
    with Video(str(path), DecodeConfig()) as video:
        render(video, [view], [output])
    return output


@pytest.mark.parametrize("fields_from", [0, 1, 15, 23])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_packets_that_are_fields_are_not_frames(suffix: str, fields_from: int, tmp_path: Path) -> None:
    """Also where the first pictures are frames."""
    pictured = [numbered_picture(number, 64, 96) for number in range(24)]
    path = write_field_coded(tmp_path / f"v{suffix}", pictured, fields_from)
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 24
    with Video(str(path), DecodeConfig()) as video:
        info = video.info()
    assert (info.num_frames, info.fps) == (24, pytest.approx(25))
    whole = CropBox(0, 0, *SIZE)
    for indices in ([0, 1, 2, 23], [13], [21, 22]):
        assert read_numbers(read(path, FrameView(np.array(indices), whole, SIZE))) == indices
        times = (np.array(indices) + 0.5) / 25
        assert read_numbers(read(path, TimeView(times, whole, SIZE))) == indices
    clip = one_clip(path)
    assert (clip.num_frames, clip.fps) == (24, 25)
    assert read_numbers(np.stack(pictures(clip))) == list(range(24))


@pytest.mark.parametrize("second", [(128, 192), (96, 64)])
def test_a_size_that_changes_on_the_way(second: tuple[int, int], tmp_path: Path) -> None:
    """Two H.264 streams in one: the part of the picture that is cut out stays the same part."""
    parts = [
        write_numbered(tmp_path / f"{n}.ts", 20, first=20 * n, size=size, b_frames=0)
        for n, size in enumerate((SIZE, second))
    ]
    path = _joined(parts, tmp_path / "v.ts")
    box = CropBox(0, 24, 64, 24)  # the second column of cells: bits 1 and 5
    for view in (
        FrameView(np.array([2, 10, 22, 38]), box, (32, 32)),
        TimeView((np.array([2, 10, 22, 38]) + 0.5) / 25, box, (32, 32)),
    ):
        levels = read(path, view)[:, [8, 24], 16].mean(axis=-1) > 128  # [frames, 2 cells]
        assert levels.tolist() == [[bool(n >> 1 & 1), bool(n >> 5 & 1)] for n in (2, 10, 22, 38)]
    assert read_numbers(np.stack(pictures(one_clip(path)))) == list(range(40))


def _joined(parts: list[Path], path: Path) -> Path:
    """Packets of several files, one after the other in time."""
    with av.open(str(path), "w") as container:
        with av.open(str(parts[0])) as first:
            target = container.add_stream_from_template(first.streams.video[0])
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                packets = [packet for packet in source.demux(video=0) if packet.size]
                start = packets[0].pts
                for packet in packets:
                    copy = av.Packet(bytes(packet))
                    copy.pts = copy.dts = packet.pts - start + round(number * 20 / 25 / packet.time_base)
                    copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, target
                    container.mux(copy)
    return path


def test_interlaced_frames_with_a_packet_each_need_no_second_pass(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1:bframes=2"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(100):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *SIZE), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with Video(str(path), DecodeConfig()) as video:
        assert next(video.frames()).interlaced_frame
        assert not video.has_fields
        assert len(video.times()) == 100
    assert read_numbers(read(path, FrameView(np.array([60]), CropBox(0, 0, *SIZE), SIZE))) == [60]


def test_raw_streams_are_refused_for_their_missing_times(tmp_path: Path) -> None:
    path = tmp_path / "v.h264"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(8):
            picture = numbered_picture(number, *SIZE)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(
        DecodeError, match=r"unsupported: no frame has a time stamp; put the raw stream into a container"
    ):
        one_clip(path)
