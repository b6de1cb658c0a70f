"""The isolated decoder: the right frames, one reason for every broken file, and a parent that outlives its child."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.decode.config import Backend, DecodeConfig, DecodeError, FrameView, TimeView, VideoInfo
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.media import Media
from pipeline.sampling import CropBox
from tests.support.hijacked_child import hijack, saying
from tests.support.numbered import numbered_picture, read_numbers, write_numbered

SIZE = (32, 48)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_numbered(folder / "b_frames.mp4")
    write_numbered(folder / "plain.mp4", gop=8, b_frames=0)
    write_numbered(folder / "film.webm")
    write_numbered(folder / "old.avi")
    write_numbered(folder / "odd.mkv", size=(62, 98))
    return folder


@pytest.fixture(scope="module", params=["decord", "pyav"])
def decoder(request: pytest.FixtureRequest) -> Iterator[IsolatedDecoder]:
    backend: Backend = request.param
    with IsolatedDecoder(DecodeConfig(backend=backend)) as decoder:
        yield decoder


def whole(indices: npt.ArrayLike) -> FrameView:
    return FrameView(np.asarray(indices, np.int64), None, SIZE)


@pytest.mark.parametrize("name", ["b_frames.mp4", "plain.mp4", "film.webm", "old.avi", "odd.mkv"])
def test_frames_are_those_asked_for(decoder: IsolatedDecoder, videos: Path, name: str) -> None:
    draw = np.random.default_rng(0)
    wanted = [np.arange(16), np.arange(24, 40), np.arange(0, 40, 13), np.array([7, 7, 3, 39]), draw.integers(0, 40, 8)]
    for indices in wanted:
        (clip,) = decoder.decode(videos / name, [whole(indices)])
        assert read_numbers(clip) == indices.tolist()


def test_views_of_one_pass_equal_views_alone(decoder: IsolatedDecoder, videos: Path) -> None:
    views = [
        FrameView(np.arange(3, 11), CropBox(0, 0, 32, 48), (32, 48)),
        FrameView(np.arange(20, 36, 2), CropBox(10, 20, 40, 60), (24, 24)),
        FrameView(np.arange(8), None, (16, 16)),
    ]
    together = decoder.decode(videos / "b_frames.mp4", views)
    for view, clip in zip(views, together, strict=True):
        np.testing.assert_array_equal(clip, decoder.decode(videos / "b_frames.mp4", [view])[0])


def test_a_crop_is_the_part_of_the_picture(decoder: IsolatedDecoder, videos: Path) -> None:
    (uncropped,) = decoder.decode(videos / "plain.mp4", [FrameView(np.array([5]), None, (64, 96))])
    (crop,) = decoder.decode(videos / "plain.mp4", [FrameView(np.array([5]), CropBox(8, 16, 24, 40), (24, 40))])
    np.testing.assert_array_equal(crop[0], uncropped[0, 8:32, 16:56])


def test_a_video_in_memory_and_outputs_that_are_given(decoder: IsolatedDecoder, videos: Path) -> None:
    batch = np.zeros((2, 4, *SIZE, 3), np.uint8)
    content = (videos / "film.webm").read_bytes()
    decoder.decode(content, [whole(range(4)), whole(range(30, 34))], list(batch))
    assert read_numbers(batch[0]) == [0, 1, 2, 3]
    assert read_numbers(batch[1]) == [30, 31, 32, 33]


def test_times_pick_the_frame_on_screen(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    """Frames 0 to 9 are shown 0.1 s each, 10 to 19 half a second each."""
    times = [*np.arange(10) * 0.1, *(1 + np.arange(10) * 0.5)]
    path = write_numbered(tmp_path / "variable.mkv", 20, times=times, b_frames=0)
    (clip,) = decoder.decode(path, [TimeView(np.array([0.0, 0.05, 0.35, 1.2, 1.55, 5.4, 5.52]), None, SIZE)])
    assert read_numbers(clip) == [0, 0, 3, 10, 11, 18, 19]
    assert decoder.probe(path).duration_seconds == pytest.approx(5.5, abs=0.6)


@pytest.mark.parametrize("ending", [".avi", ".mp4", ".mkv"])
@pytest.mark.parametrize("fps", [25, 30])
def test_a_frame_is_on_screen_until_the_next_one(
    decoder: IsolatedDecoder, tmp_path: Path, ending: str, fps: int
) -> None:
    """Whether the container counts frames (AVI), microseconds, or milliseconds to which times were rounded."""
    path = write_numbered(tmp_path / f"video{ending}", 20, fps=fps, b_frames=0)
    shares = np.array([0.0, 0.4, 0.6, 0.95])  # of a frame's time
    (clip,) = decoder.decode(path, [TimeView((np.array([2, 3, 7, 11]) + shares) / fps, None, SIZE)])
    assert read_numbers(clip) == [2, 3, 7, 11]


def test_rotation_is_applied(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "turned.mp4", 12, size=(64, 96), rotation=90, b_frames=0)
    info = decoder.probe(path)
    assert (info.height, info.width) == (96, 64)
    (clip,) = decoder.decode(path, [FrameView(np.array([6]), None, (96, 64))])
    upright = np.rot90(clip[0], info.rotation // 90)  # undo the clockwise turn
    assert read_numbers(upright[None]) == [6]


def test_probe_counts_frames_and_seconds(decoder: IsolatedDecoder, videos: Path) -> None:
    for name in ("b_frames.mp4", "film.webm", "old.avi", "odd.mkv"):
        info = decoder.probe(videos / name)
        assert info.num_frames == 40
        assert info.duration_seconds == pytest.approx(1.6, abs=0.05)
        assert info.fps == pytest.approx(25, rel=0.01)


def test_a_frame_just_past_the_end_is_the_last_one(decoder: IsolatedDecoder, videos: Path) -> None:
    (clip,) = decoder.decode(videos / "plain.mp4", [whole([38, 39, 40, 41])])
    assert read_numbers(clip) == [38, 39, 39, 39]
    with pytest.raises(DecodeError) as error:
        decoder.decode(videos / "plain.mp4", [whole([39, 60])])
    assert error.value.reason == "missing_frames"


def test_every_broken_file_has_its_reason(decoder: IsolatedDecoder, videos: Path, tmp_path: Path) -> None:
    whole_file = (videos / "plain.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "truncated.mp4").write_bytes(whole_file[: len(whole_file) // 2])
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = {
        "empty.mp4": "empty",
        "text.mp4": "not_a_video",
        "truncated.mp4": "not_a_video",
        "folder.mp4": "not_a_file",
        "sound.mp4": "no_video_stream",
        "absent.mp4": "missing",
    }
    found = {}
    for name in expected:
        with pytest.raises(DecodeError) as error:
            decoder.decode(tmp_path / name, [whole(range(4))])
        found[name] = error.value.reason
    assert found == expected
    assert read_numbers(decoder.decode(videos / "plain.mp4", [whole([9])])[0]) == [9]


def test_a_name_that_is_no_valid_text(decoder: IsolatedDecoder, videos: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff %d [x]:y.mp4"
    with open(path, "wb") as file:
        file.write((videos / "plain.mp4").read_bytes())
    assert read_numbers(decoder.decode(os.fsdecode(path), [whole([4])])[0]) == [4]


@pytest.mark.parametrize(
    ("limit", "value"), [("max_pixels", 64 * 96 - 1), ("max_frames", 39), ("max_seconds", 1.5), ("max_bytes", 1000)]
)
def test_limits_hold_before_decoding(videos: Path, limit: str, value: float) -> None:
    with IsolatedDecoder(DecodeConfig(**{limit: value})) as strict:  # type: ignore[arg-type]
        for name in ("plain.mp4", "film.webm"):
            with pytest.raises(DecodeError) as error:
                strict.decode(videos / name, [whole([0])])
            assert error.value.reason == limit


def test_a_day_is_refused_at_once(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "day.mp4", 2, times=[0.0, 24 * 3600.0], b_frames=0)
    with IsolatedDecoder() as decoder:
        with pytest.raises(DecodeError) as error:
            decoder.probe(path)
        assert error.value.reason == "max_seconds"


def test_a_dead_child_is_replaced(videos: Path) -> None:
    with IsolatedDecoder() as decoder:
        decoder.probe(videos / "plain.mp4")
        os.kill(child_of(decoder), signal.SIGKILL)
        with pytest.raises(DecodeError) as error:
            decoder.probe(videos / "plain.mp4")
        assert error.value.reason == "crashed"
        assert read_numbers(decoder.decode(videos / "plain.mp4", [whole([11])])[0]) == [11]
        assert decoder.children_lost == 1


def test_a_hanging_child_meets_its_deadline(videos: Path) -> None:
    with IsolatedDecoder(DecodeConfig(deadline_seconds=0.5)) as decoder:
        decoder.probe(videos / "plain.mp4")
        os.kill(child_of(decoder), signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DecodeError) as error:
            decoder.probe(videos / "plain.mp4")
        assert error.value.reason == "timeout"
        assert time.monotonic() - began < 5
        assert decoder.probe(videos / "plain.mp4").num_frames == 40


@pytest.mark.parametrize("backend", ["decord", "auto", "pyav"])
def test_when_a_child_dies_pyav_has_one_more_try(videos: Path, backend: Backend) -> None:
    with IsolatedDecoder(DecodeConfig(backend=backend)) as decoder:
        decoder.probe(videos / "plain.mp4")
        os.kill(child_of(decoder), signal.SIGKILL)
        assert read_numbers(decoder.decode(videos / "plain.mp4", [whole([3])])[0]) == [3]
        assert decoder.children_lost == 1


@pytest.mark.parametrize(("backend", "module"), [("auto", ""), ("pyav", ""), ("decord", "decord")])
def test_only_who_asks_for_decord_gets_it(videos: Path, backend: Backend, module: str) -> None:
    """An FFmpeg of 2020 is not even loaded elsewhere, so no hanging child can lead to it."""
    with IsolatedDecoder(DecodeConfig(backend=backend, deadline_seconds=0.5)) as decoder:
        decoder.probe(videos / "plain.mp4")
        for _ in range(2):
            maps = Path(f"/proc/{child_of(decoder)}/maps").read_text()
            assert ("libdecord" in maps) == bool(module)
            if module:
                break
            os.kill(child_of(decoder), signal.SIGSTOP)
            decoder.decode(videos / "plain.mp4", [whole([3])])  # by the second try


def test_decord_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^backend=decord: needs decord, .* not installed here; install it, or use auto"
    ):
        DecodeConfig(backend="decord")
    assert DecodeConfig().backend == "auto"


def test_without_decord_everything_else_works() -> None:
    """The child's modules load where decord cannot be imported."""
    source = (
        "import sys; sys.modules['decord'] = None; sys.path.insert(0, sys.argv[1])\n"
        "import pipeline.decode.child, pipeline.transcode.child, pipeline.decode.decoder"
    )
    subprocess.run([sys.executable, "-P", "-c", source, str(Path(__file__).parents[3])], check=True)


def test_memory_is_limited(tmp_path: Path) -> None:
    """A picture that needs more than the child may have is a reason, and the child that met it is not kept."""
    path = tmp_path / "large.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 8192, 8192, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(numbered_picture(3, 8192, 8192), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with IsolatedDecoder(DecodeConfig(memory_bytes=2**28, max_pixels=2**26)) as decoder:
        with pytest.raises(DecodeError) as error:
            decoder.decode(path, [FrameView(np.array([0]), None, (8000, 8000))])
        assert error.value.reason in ("out_of_memory", "crashed", "damaged")
    with IsolatedDecoder(DecodeConfig(memory_bytes=2**30, max_pixels=2**26)) as decoder:
        assert read_numbers(decoder.decode(path, [whole([0])])[0]) == [3]


def test_validation_finds_damage(videos: Path, tmp_path: Path) -> None:
    """Flipped bytes in an H.264 stream: every file whose pictures differ is refused."""
    original = bytearray((videos / "b_frames.mp4").read_bytes())
    start = original.index(b"mdat") + 4
    draw = np.random.default_rng(3)
    missed = 0
    with IsolatedDecoder() as decoder:
        assert decoder.validate(videos / "b_frames.mp4").num_frames == 40
        (intact,) = decoder.decode(videos / "b_frames.mp4", [whole(range(40))])
        for number in range(12):
            damaged = bytearray(original)
            for place in draw.integers(start, original.index(b"moov", start), 20):
                damaged[place] ^= 0xFF
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(damaged)
            if refused(decoder, path):
                continue
            (clip,) = decoder.decode(path, [whole(range(40))])
            missed += not np.array_equal(clip, intact)
    assert missed == 0


def test_views_must_be_of_one_kind(decoder: IsolatedDecoder, videos: Path) -> None:
    with pytest.raises(ValueError, match="same kind"):
        decoder.decode(videos / "plain.mp4", [whole([0]), TimeView(np.array([0.0]), None, SIZE)])
    with pytest.raises(ValueError, match="non-empty"):
        decoder.decode(videos / "plain.mp4", [whole([])])


@pytest.mark.parametrize("media", ["video", "image"])
@pytest.mark.parametrize("lie", [{"num_frames": 0}, {"width": 0}, {"height": -1}, {"rotation": 45}])
def test_facts_that_no_video_has_are_a_crash(tmp_path: Path, media: Media, lie: dict[str, int]) -> None:
    info = VideoInfo(64, 48, 30.0, 60, 2.0, "h264", "mov", 0)
    with IsolatedDecoder(DecodeConfig(), media) as decoder:
        hijack(decoder)
        path = saying(tmp_path / "lie.mp4", ("done", dataclasses.replace(info, **lie)))  # type: ignore[arg-type]
        for ask in (decoder.probe, decoder.validate):
            with pytest.raises(DecodeError) as caught:
                ask(path)
            assert caught.value.reason == "crashed"
        assert decoder.children_lost == 2
        assert decoder.probe(saying(tmp_path / "truth.mp4", ("done", info))) == info


@pytest.mark.clips
def test_real_clips_give_frames_or_a_reason(decoder: IsolatedDecoder, real_clips: Path) -> None:
    unusable = set()
    for path in sorted([*real_clips.glob("unusual/*"), *real_clips.glob("trouble/*")]):
        try:
            info = decoder.probe(path)
            view = FrameView(np.linspace(0, info.num_frames - 1, 4).astype(np.int64), None, SIZE)
            assert decoder.decode(path, [view])[0].shape == (4, *SIZE, 3)
        except DecodeError:
            unusable.add(path.parent.name)
    assert unusable == {"trouble"}


def refused(decoder: IsolatedDecoder, path: Path) -> bool:
    """Whether validation finds damage."""
    try:
        decoder.validate(path)
    except DecodeError:
        return True
    return False


def child_of(decoder: IsolatedDecoder) -> int:
    """Process id of the decoder's child; 0 while it has none."""
    child = decoder._child
    return child.process_id if child else 0
