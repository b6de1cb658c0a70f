"""Transcoding: which frames come out, at which rate and size, how good, and what is refused."""

from __future__ import annotations

import gc
import io
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jobs.synthetic.motion_videos import (
    encode,
)
from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.decode.video_file import Video
from pipeline.transcode.config import Damage, StoredClip, TranscodeConfig
from pipeline.transcode.h264_encoder import ClipEncoder
from pipeline.transcode.transcode import process
from tests.support.transcoding import frames_of, numbers, one_clip, pictures, run
from tests.support.video_matrix import cells, write_cell


def with_times(path: Path, milliseconds: list[int], frames: np.ndarray) -> Path:
    """A Matroska file whose frames are shown at given times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "15", "bf": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(milliseconds, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_every_frame_comes_out_once_and_in_order(video: Path) -> None:
    clip = one_clip(video)
    assert numbers(clip) == list(range(40))
    assert (clip.width, clip.height, clip.fps, clip.num_frames) == (128, 128, 30.0, 40)
    assert (clip.start_seconds, clip.end_seconds) == (0.0, pytest.approx(40 / 30))


def test_made_for_random_access(video: Path) -> None:
    clip = one_clip(video)
    assert clip.video is not None
    with av.open(io.BytesIO(clip.video)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert not stream.codec_context.has_b_frames
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert keys[0] == 0
    assert max(np.diff([*keys, len(packets)])) <= 32


def test_equal_input_gives_equal_bytes(video: Path) -> None:
    assert one_clip(video).video == one_clip(video).video


def test_quality_at_the_default(tmp_path: Path) -> None:
    """Mean PSNR against the scaled original is at least 36 dB."""
    original = frames_of(320, 24)
    encode(tmp_path / "v.mp4", original, 30)
    with av.open(str(tmp_path / "v.mp4")) as container:
        scaled = [
            frame.reformat(256, 256, "rgb24", interpolation="AREA").to_ndarray() for frame in container.decode(video=0)
        ]
    stored = pictures(one_clip(tmp_path / "v.mp4"))
    errors = [np.square(a.astype(float) - b).mean() for a, b in zip(scaled, stored, strict=True)]
    assert np.mean([10 * np.log10(255**2 / error) for error in errors]) >= 36


@pytest.mark.parametrize("target", [10.0, 15.0, 7.5])
def test_target_frame_rate_takes_every_nth_frame(video: Path, target: float) -> None:
    clip = one_clip(video, target_fps=target)
    assert clip.fps == target
    step = round(30 / target)
    assert numbers(clip) == list(range(0, 40, step))


def test_a_higher_target_rate_changes_nothing(video: Path) -> None:
    assert one_clip(video, target_fps=60.0).video == one_clip(video).video


def test_irregular_times_become_a_constant_rate(tmp_path: Path) -> None:
    """A frame that stays for four ticks is stored four times: index and time agree again."""
    frames = frames_of(count=10)
    times = [0, 33, 67, 100, 233, 267, 300, 333, 367, 400]
    path = with_times(tmp_path / "v.mkv", times, frames)
    clip = one_clip(path)
    shown = numbers(clip)
    expected = [
        max(n for n, time in enumerate(times) if time <= tick * 1000 / clip.fps + 12) for tick in range(len(shown))
    ]
    assert shown == expected
    assert shown.count(3) > 2


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_millisecond_time_bases_are_regular(tmp_path: Path, suffix: str) -> None:
    encode(tmp_path / f"v{suffix}", frames_of(count=30), 30)
    clip = one_clip(tmp_path / f"v{suffix}")
    assert numbers(clip) == list(range(30))
    assert clip.fps == 30


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, clockwise: int) -> None:
    frames = frames_of(128, 6)[:, :, :96]
    encode(tmp_path / "plain.mp4", frames, 30)
    plain = pictures(one_clip(tmp_path / "plain.mp4"))[2]
    path = tmp_path / "plain.mp4"
    data = with_rotation(path.read_bytes(), clockwise)
    (tmp_path / "turned.mp4").write_bytes(data)
    clip = one_clip(tmp_path / "turned.mp4")
    upright = pictures(clip)[2]
    expected = np.rot90(plain, -clockwise // 90)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 4


def with_rotation(data: bytes, clockwise: int) -> bytes:
    """Patch the track header's display matrix of an MP4 (ISO 14496-12, 8.3.2)."""
    one = 1 << 16
    cos, sin = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[clockwise]
    matrix = np.array([cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30], ">i4").tobytes()
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + matrix + data[start + 36 :]


@pytest.mark.parametrize(("width", "height"), [(101, 67), (67, 101), (33, 64)])
def test_odd_sizes_become_even(tmp_path: Path, width: int, height: int) -> None:
    frames = np.ascontiguousarray(frames_of(128, 6)[:, :height, :width])
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    clip = one_clip(tmp_path / "v.mkv")
    assert clip.width % 2 == clip.height % 2 == 0
    assert abs(clip.width - width) <= 1
    assert abs(clip.height - height) <= 1
    assert len(pictures(clip)) == 6


def test_long_footage_is_cut(video: Path) -> None:
    outputs, info = run(video, clip_seconds=0.4)
    assert info.num_frames == 40
    clips = [clip for clip in outputs if isinstance(clip, StoredClip)]
    assert [numbers(clip) for clip in clips] == [list(range(12)), list(range(12, 24)), list(range(24, 40))]
    assert [clip.start_seconds for clip in clips] == pytest.approx([0, 0.4, 0.8])


def test_overlapping_clips(video: Path) -> None:
    outputs, _ = run(video, clip_seconds=0.8, hop_seconds=0.4)
    shown = [numbers(clip) for clip in outputs if isinstance(clip, StoredClip)]
    assert shown == [list(range(24)), list(range(12, 36)), list(range(24, 40))]


def test_a_finished_clip_leaves_nothing_in_memory(video: Path) -> None:
    """A day of footage has thousands of clips; only the open ones may hold an encoder."""
    encoders = []

    def open_encoders() -> int:
        return sum(isinstance(thing, ClipEncoder) for thing in gc.get_objects())

    gc.collect()
    others = open_encoders()  # of tests that failed in the middle of a clip, as they should

    def count(_: object) -> None:
        encoders.append(open_encoders() - others)

    with Video(str(video), DecodeConfig()) as opened:
        process(opened, TranscodeConfig(clip_seconds=0.1), count)
    assert len(encoders) == 13
    assert max(encoders) <= 2


def test_clips_with_gaps_between_them(video: Path) -> None:
    """What lies between the clips, and behind the last one, is checked but not stored."""
    outputs, info = run(video, clip_seconds=0.2, hop_seconds=0.5)
    shown = [numbers(clip) for clip in outputs if isinstance(clip, StoredClip)]
    assert shown == [list(range(6)), list(range(15, 21)), list(range(30, 36))]
    assert info.num_frames == 40


def test_passthrough_keeps_the_bytes(video: Path) -> None:
    clip = one_clip(video, mode="passthrough")
    assert clip.video is None  # the parent stores the file's own bytes
    assert clip.num_frames == 40


def test_reference_stores_nothing(video: Path) -> None:
    assert one_clip(video, mode="reference").video is None


def damaged(source: Path, target: Path, at: float, count: int = 60) -> Path:
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(0)
    start = data.index(b"mdat") + 8
    place = start + int((len(data) - start) * at)
    data[place : place + count] = rng.integers(0, 256, count, np.uint8).tobytes()
    target.write_bytes(data)
    return target


def test_damage_refuses_a_video(video: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError) as caught:
        run(damaged(video, tmp_path / "d.mp4", 0.3))
    assert caught.value.reason == "damaged"


def test_damage_costs_only_its_clips_when_footage_is_cut(tmp_path: Path) -> None:
    """Every GOP begins anew: what lies before and after the damaged one is kept."""
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "20", "g": "10", "bf": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for image in frames_of(128, 60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    outputs, _ = run(damaged(tmp_path / "v.mp4", tmp_path / "d.mp4", 0.4), clip_seconds=0.5)
    damage = [output for output in outputs if isinstance(output, Damage)]
    clips = [output for output in outputs if isinstance(output, StoredClip)]
    assert len(damage) in (1, 2)
    assert len(clips) + len(damage) == 4
    assert numbers(clips[0]) == list(range(15))


def test_leading_pictures_of_a_cut_stream_are_left_out_and_counted(tmp_path: Path) -> None:
    cell = next(cell for cell in cells(0) if (cell.container, cell.codec, cell.stamps) == ("ts", "libx264", "cut"))
    path = tmp_path / "v.ts"
    write_cell(path, cell)
    (clip,), info = run(path)
    assert isinstance(clip, StoredClip)
    assert (clip.num_frames, info.num_frames, info.trimmed_frames) == (20, 20, 7)
    with pytest.raises(DecodeError, match="the first 7 frames"):
        run(path, damage="refuse")


def test_leading_pictures_can_be_kept(tmp_path: Path) -> None:
    cell = next(cell for cell in cells(0) if (cell.container, cell.codec, cell.stamps) == ("ts", "libx264", "cut"))
    write_cell(tmp_path / "v.ts", cell)
    (clip,), info = run(tmp_path / "v.ts", damage="keep")
    with av.open(str(tmp_path / "v.ts")) as container:
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(video=0))
        shown = sum(len(packet.decode()) for packet in packets)
    assert isinstance(clip, StoredClip)
    assert clip.num_frames == info.num_frames == shown
    assert (info.trimmed_frames, info.damaged_frames) == (27 - shown, shown - 20)
    (clip,), info = run(tmp_path / "v.ts", damage="keep", mode="passthrough")  # readers leave them out of such bytes
    assert (clip.num_frames, info.trimmed_frames) == (20, 7)


def test_damage_can_be_kept(video: Path, tmp_path: Path) -> None:
    path = damaged(video, tmp_path / "d.mp4", 0.3)
    with pytest.raises(DecodeError):
        run(path, damage="trim")
    (clip,), info = run(path, damage="keep")
    assert isinstance(clip, StoredClip)
    assert clip.num_frames == pytest.approx(40, abs=2)
    assert 0 < info.damaged_frames < 30
    assert run(video, damage="keep")[1].damaged_frames == 0
    assert numbers(one_clip(video, damage="keep")) == list(range(40))


def numbered(path: Path) -> Path:
    """60 frames, each a key frame: what is missing of such a file spoils nothing else."""
    flags = "frag_keyframe+empty_moov" if "fragmented" in path.name else "faststart"
    options = {"movflags": flags} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        codec = "libvpx" if path.suffix == ".webm" else "libx264"
        stream: Any = container.add_stream(codec, rate=30, options={"crf": "10", "g": "1", "b": "4M"})
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for image in frames_of(128, 60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("mode", ["transcode", "passthrough"])
@pytest.mark.parametrize("name", ["v.webm", "v.mkv", "v.ts", "v.mp4", "v.fragmented.mp4"])
def test_a_file_that_was_cut_off_is_kept_up_to_its_last_frame(name: str, mode: str, tmp_path: Path) -> None:
    path = numbered(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    (clip,), info = run(path, damage="keep", mode=mode)
    assert isinstance(clip, StoredClip)
    assert 30 < clip.num_frames < 42
    assert clip.num_frames == info.num_frames
    assert clip.end_seconds == pytest.approx(clip.num_frames / 30, abs=0.1)
    if mode == "transcode":
        assert numbers(clip)[:-1] == list(range(clip.num_frames - 1))
    if name == "v.fragmented.mp4":  # promises no end, but its last packet is cut
        assert info.damaged_frames == 1
    elif name != "v.ts":
        assert info.damaged_frames == pytest.approx(60 - clip.num_frames, abs=2)
        with pytest.raises(DecodeError, match="damaged"):
            run(path, mode=mode)


@pytest.mark.parametrize("share", [0.2, 0.97])
def test_what_is_missing_in_the_middle_shifts_nothing(share: float, tmp_path: Path) -> None:
    """20 and more packets made unreadable, also the last ones: the other frames stay at their times."""
    path = numbered(tmp_path / "v.mp4")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    end = len(content)
    first = int(start + share * (end - start))
    last = min(end, int(first + 0.4 * (end - start)))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    (clip,), info = run(path, damage="keep")
    assert isinstance(clip, StoredClip)
    shown = numbers(clip)
    right = [index for index, number in enumerate(shown) if index == number]
    missing = round((last - first) / (end - start) * 60)
    assert len(right) >= 60 - missing - 3
    assert missing - 3 <= info.damaged_frames <= missing + 3
    with pytest.raises(DecodeError, match="damaged"):
        run(path)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    wanted = ("mp4", "libx264", Fraction(4, 3))
    cell = next(cell for cell in cells(0) if (cell.container, cell.codec, cell.aspect) == wanted)
    write_cell(tmp_path / "v.mp4", cell)
    for square, size in ((True, (170, 96)), (False, (128, 96))):
        clip = one_clip(tmp_path / "v.mp4", square_pixels=square)
        assert (clip.width, clip.height) == size
    assert run(tmp_path / "v.mp4")[1].pixel_aspect == pytest.approx(4 / 3)
