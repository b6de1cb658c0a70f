"""Transcoding: which frames come out, at which rate and size, how good, and what is refused."""

from __future__ import annotations

import gc
import io
import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.synthetic.motion_videos import (
    Rendering,
    draw_frames,
    draw_motion,
    encode,
    paint_frame_numbers,
    read_frame_number,
)
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.video_file import Video
from pipeline.transcode.clip_geometry import clip_spans, output_rate, stored_size
from pipeline.transcode.config import Damage, StoredClip, TranscodeConfig
from pipeline.transcode.h264_encoder import ClipEncoder
from pipeline.transcode.transcode import process
from pipeline.transcode.transcoder import IsolatedTranscoder
from tests.support.numbered import write_numbered


def frames_of(size: int = 128, count: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    motion = draw_motion("moves_right", count, rng)
    return paint_frame_numbers(draw_frames([motion], Rendering(0.5, size, count), rng))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "numbered.mp4"
    encode(path, frames_of(), 30)
    return path


@pytest.fixture(scope="module")
def transcoder() -> Iterator[IsolatedTranscoder]:
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig(deadline_seconds=30)) as transcoder:
        yield transcoder


def run(path: Path, **settings: Any) -> tuple[list[StoredClip | Damage], VideoInfo]:
    outputs: list[StoredClip | Damage] = []
    with Video(str(path), DecodeConfig()) as video:
        info = process(video, TranscodeConfig(**settings), outputs.append, lambda: None)
    return outputs, info


def one_clip(path: Path, **settings: Any) -> StoredClip:
    outputs, _ = run(path, **settings)
    assert len(outputs) == 1
    assert isinstance(outputs[0], StoredClip)
    return outputs[0]


def pictures(clip: StoredClip) -> list[np.ndarray]:
    assert clip.video is not None
    with av.open(io.BytesIO(clip.video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def numbers(clip: StoredClip) -> list[int | None]:
    return [read_frame_number(picture) for picture in pictures(clip)]


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


@settings(deadline=None)
@given(st.integers(1, 8192), st.integers(1, 8192), st.sampled_from([64, 224, 256, 480]))
def test_stored_size(width: int, height: int, short_side: int) -> None:
    stored = stored_size(width, height, short_side)
    assert all(side % 2 == 0 and side >= 16 for side in stored)
    assert min(stored) <= max(short_side, 16)
    if min(width, height) >= 32:
        assert stored[0] <= width + 1
        assert stored[0] / stored[1] == pytest.approx(width / height, rel=0.1)


@settings(deadline=None)
@given(st.floats(0.05, 500), st.floats(0.5, 20), st.floats(0.1, 1))
def test_spans_cover_the_video(duration: float, clip: float, share: float) -> None:
    """With hops no longer than clips nothing of the footage is lost; no clip is too short or too long."""
    spans = clip_spans(duration, clip, clip * share)
    assert spans[0][0] == 0
    assert spans[-1][1] == pytest.approx(duration)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start <= end + 1e-9
    lengths = [end - start for start, end in spans]
    assert max(lengths) <= 1.5 * clip + 1e-9
    if duration > clip / 2:
        assert min(lengths) >= min(clip / 2, duration) - 1e-9


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
        process(opened, TranscodeConfig(clip_seconds=0.1), count, lambda: None)
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


def test_passthrough_cuts_at_key_frames(tmp_path: Path) -> None:
    long = np.concatenate([frames_of(64, 60, seed) for seed in (1, 2)])
    paint_frame_numbers(long)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        options = {"crf": "20", "g": "15", "keyint_min": "15", "sc_threshold": "0", "bf": "0"}
        stream = container.add_stream("libx264", rate=30, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in long:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    outputs, _ = run(tmp_path / "v.mp4", mode="passthrough", clip_seconds=1.2)
    clips = [clip for clip in outputs if isinstance(clip, StoredClip)]
    shown = [number for clip in clips for number in numbers(clip)]
    assert shown == list(range(120))
    assert [numbers(clip)[0] % 15 for clip in clips] == [0] * len(clips)
    assert len(clips) == 3


def test_a_pass_over_all_packets_tells_that_it_goes_on(tmp_path: Path) -> None:
    """In a long file without an index it takes minutes, before the first frame is decoded."""
    told: list[int] = []
    path = write_numbered(tmp_path / "v.mkv", 100)
    with Video(str(path), DecodeConfig(), lambda: told.append(1)) as video:
        assert len(video.times()) == 100
    assert len(told) == 3


@pytest.mark.parametrize(("clip_seconds", "hop_seconds"), [(0.3, 0.1), (0.6, 0.4), (0.3, 0.8)])
def test_passthrough_tells_the_spans_that_it_stores(clip_seconds: float, hop_seconds: float, tmp_path: Path) -> None:
    """Key frames every 0.48 s: spans between the same ones are one piece, and a piece is as long as it says."""
    path = write_numbered(tmp_path / "v.mp4", 60, b_frames=0)
    outputs, _ = run(path, mode="passthrough", clip_seconds=clip_seconds, hop_seconds=hop_seconds)
    clips = [clip for clip in outputs if isinstance(clip, StoredClip)]
    assert len(clips) == len(outputs) > 2
    assert len({(clip.start_seconds, clip.end_seconds) for clip in clips}) == len(clips)
    for clip in clips:
        assert clip.num_frames == round(25 * (clip.end_seconds - clip.start_seconds))


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


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"this is no video, whatever its name says\n" * 50, "not_a_video"),
        ("absent.mp4", None, "missing"),
    ],
)
def test_refused_with_a_reason(
    transcoder: IsolatedTranscoder, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        list(transcoder.process(tmp_path / name))
    assert caught.value.reason == reason


def test_a_name_that_is_no_text(transcoder: IsolatedTranscoder, tmp_path: Path, video: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4"))
    shutil.copy(video, path)
    assert isinstance(list(transcoder.process(path))[-1], VideoInfo)


def test_truncated_and_audio_only(transcoder: IsolatedTranscoder, tmp_path: Path, video: Path) -> None:
    encode(tmp_path / "v.webm", frames_of(), 30)
    (tmp_path / "half.webm").write_bytes((tmp_path / "v.webm").read_bytes()[:-2000])
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reasons = {}
    for name in ("half.webm", "half.mp4", "audio.mp4"):
        with pytest.raises(DecodeError) as caught:
            list(transcoder.process(tmp_path / name))
        reasons[name] = caught.value.reason
    assert reasons == {"half.webm": "damaged", "half.mp4": "not_a_video", "audio.mp4": "no_video_stream"}
    assert isinstance(list(transcoder.process(video))[-1], VideoInfo)
    assert transcoder.children_lost == 0


@pytest.mark.parametrize(
    ("limit", "value"), [("max_pixels", 128 * 127), ("max_frames", 39), ("max_seconds", 1.0), ("max_bytes", 1000)]
)
def test_limits(video: Path, limit: str, value: float) -> None:
    limits = DecodeConfig(**{limit: value})  # type: ignore[arg-type]
    with IsolatedTranscoder(TranscodeConfig(), limits) as small, pytest.raises(DecodeError) as caught:
        list(small.process(video))
    assert caught.value.reason == limit


@pytest.mark.parametrize(("fault", "reason"), [(signal.SIGSTOP, "timeout"), (signal.SIGSEGV, "crashed")])
def test_a_child_that_hangs_or_dies_is_replaced(video: Path, fault: signal.Signals, reason: str) -> None:
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig(deadline_seconds=1.0)) as transcoder:
        assert isinstance(list(transcoder.process(video))[-1], VideoInfo)
        assert transcoder._child is not None
        os.kill(transcoder._child.process_id, fault)
        with pytest.raises(DecodeError) as caught:
            list(transcoder.process(video))
        assert caught.value.reason == reason
        assert isinstance(list(transcoder.process(video))[-1], VideoInfo)
        assert transcoder.children_lost == 1


@pytest.mark.parametrize(
    ("fps", "times", "target", "expected"),
    [
        (30000 / 1001, [n * 1001 / 30000 for n in range(20)], None, Fraction(30000, 1001)),
        (0.0, [0, 0.1, 0.2, 0.3], None, Fraction(10)),
        (1000.0, [0, 0.04, 0.08], None, Fraction(25)),
        (25.0, [0.0], None, Fraction(25)),
        (0.0, [0.0], None, Fraction(1)),
        (30.0, [n / 30 for n in range(9)], 7.5, Fraction(15, 2)),
        (5.0, [n / 5 for n in range(9)], 7.5, Fraction(5)),
    ],
)
def test_output_rate(fps: float, times: list[float], target: float | None, expected: Fraction) -> None:
    assert output_rate(np.array(times), fps, target) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"short_side": 255}, {"crf": 0}, {"gop": 0}, {"clip_seconds": -1.0}, {"hop_seconds": 1.0}]
)
def test_settings_outside_their_rule(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TranscodeConfig(**wrong)


@pytest.mark.clips
def test_all_real_clips_have_an_outcome(real_clips: Path, transcoder: IsolatedTranscoder) -> None:
    """The short ones here; the full set goes through the program itself."""
    outcomes = {}
    for path in sorted((*(real_clips / "trouble").iterdir(), *(real_clips / "unusual").iterdir())):
        if path.stat().st_size < 1_000_000:
            try:
                outcomes[path.name] = list(transcoder.process(path))[-1].num_frames  # type: ignore[union-attr]
            except DecodeError as error:
                outcomes[path.name] = error.reason
    assert outcomes["Zulko_moviepy__result.webm"] == "empty"
    assert outcomes["dmlc_decord__video_270.mov"] == 3
    assert sum(isinstance(outcome, int) for outcome in outcomes.values()) > 25
    assert transcoder.children_lost == 0
