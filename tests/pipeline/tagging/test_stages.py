"""The stages of the tagging pipeline, without Ray: which frames a window gets, and what a bad video becomes."""

from __future__ import annotations

import itertools
import os
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.confinement.messages import LEAST_REAL, MOST, MOST_REAL
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.sampling import ViewConfig, evaluation_indices
from pipeline.storage import retry
from pipeline.storage.files import StorageError, content_version
from pipeline.tagging import stages as tag_stages
from pipeline.tagging.stages import DecodedWindow, DecodeWindows
from pipeline.tagging.window_views import WholeVideo, WindowViews, grid_of
from pipeline.tagging.windows import WindowGrid, video_id
from tests.support.failing_server import failing_server
from tests.support.frame_numbers import read_frame_number
from tests.support.hijacked_child import hijack, saying
from tests.support.pictures import centred, drawn, photograph
from tests.support.s3_server import set_s3_environment

GRID = WindowGrid(2.0, 1.5)
VIEWS = WindowViews(GRID, (8, 64, 64))


def _listed(path: Path | str) -> dict[str, Any]:
    version = content_version(str(path)) if Path(path).exists() else "missing"
    return {"video_id": video_id(str(path), version), "uri": str(path), "content_version": version}


def _windows(path: Path | str, views: WindowViews = VIEWS) -> list[DecodedWindow]:
    return list(DecodeWindows(DecodeConfig(), views)(_listed(path)))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An H.264 and a VP9 video of 8.5 s with one key frame at the start, and four files that are none."""
    folder = tmp_path_factory.mktemp("videos")
    rendered = [video.path for video in render_motion_videos(folder, 5, seed=1, size=64, num_frames=255)]
    by_suffix = {path.suffix: path for path in rendered}
    assert set(by_suffix) == {".mp4", ".webm"}
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.avi").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(by_suffix[".mp4"].read_bytes()[:3000])
    return [*by_suffix.values(), *(folder / name for name in ("text.mp4", "empty.avi", "cut.mp4", "none.mp4"))]


def test_a_file_that_cannot_be_opened_is_one_window_with_the_reason(videos: list[Path]) -> None:
    found = {path.name: _windows(path) for path in videos[2:]}
    assert {name: [window.status for window in windows] for name, windows in found.items()} == {
        "text.mp4": ["not_a_video"], "empty.avi": ["empty"], "cut.mp4": ["not_a_video"], "none.mp4": ["missing"],
    }  # fmt: skip
    assert all(window.message and window.index is None for (window,) in found.values())


def test_what_is_missing_at_the_end_is_described(videos: list[Path], tmp_path: Path) -> None:
    whole = next(path for path in videos if path.suffix == ".webm")
    content = whole.read_bytes()
    (tmp_path / "a.webm").write_bytes(content[: len(content) // 2])
    cut, good = (_windows(path)[0].video for path in (tmp_path / "a.webm", whole))
    assert cut["num_frames"] < 200
    assert cut["cut_off"] == f"the file ends after {cut['duration_seconds']:.2f} of {good['duration_seconds']:.2f} s"
    assert good["cut_off"] == ""


def test_windows_hold_their_own_frames(videos: list[Path]) -> None:
    for path in videos[:2]:
        windows = _windows(path)
        assert [window.index for window in windows] == list(range(6))
        assert {window.status for window in windows} == {"ok"}
        assert windows[0].video["num_frames"] == 255
        assert windows[0].video["duration_seconds"] == pytest.approx(8.5, abs=0.05)
        for index, window in enumerate(windows):
            start = min(index * 1.5, 6.5) * 30
            expected = np.floor(np.linspace(start, start + 59, 8) + 1e-6).astype(int).tolist()
            assert window.frames is not None
            assert [read_frame_number(frame) for frame in window.frames] == expected


def test_a_video_is_fetched_once(videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    original = tag_stages.local_content

    def counted(uri: str, max_bytes: int) -> AbstractContextManager[Path]:
        fetched.append(uri)
        return original(uri, max_bytes)

    monkeypatch.setattr(tag_stages, "local_content", counted)
    monkeypatch.setattr(tag_stages, "WINDOWS_PER_REQUEST", 2)
    assert len(_windows(videos[0])) == 6
    assert fetched == [str(videos[0])]


def test_an_object_replaced_after_the_listing_is_a_row_with_that_reason(videos: list[Path], tmp_path: Path) -> None:
    """The scores of another content must not stand under the version that was listed."""
    changing = tmp_path / "changing.mp4"
    changing.write_bytes(videos[0].read_bytes())
    listed = _listed(changing)
    changing.write_bytes(videos[0].read_bytes() + b"x")
    assert [window.status for window in DecodeWindows(DecodeConfig(), VIEWS)(listed)] == ["replaced"]


def test_an_object_replaced_while_it_is_read(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = tmp_path / "changing.mp4"
    changing.write_bytes(videos[0].read_bytes())
    stage = DecodeWindows(DecodeConfig(), VIEWS)
    probe = stage.decoder.probe

    def slow(path: Path) -> Any:
        found = probe(path)
        changing.write_bytes(videos[0].read_bytes() + b"x")
        return found

    monkeypatch.setattr(stage.decoder, "probe", slow)
    assert {window.status for window in stage(_listed(changing))} == {"replaced"}


def test_storage_that_fails_now_and_then_costs_no_window(videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())
    listed = {"video_id": 1, "uri": "s3://bucket/video.mp4", "content_version": "etag"}
    with failing_server("503", content=videos[0].read_bytes()) as server:
        set_s3_environment(monkeypatch, server.url)
        windows = list(DecodeWindows(DecodeConfig(), VIEWS)(listed))
    assert [window.status for window in windows] == ["ok"] * 6
    assert server.requests == 2 * 3  # fetched, compared with the listing


@pytest.mark.parametrize(
    ("happened", "status"), [("answered 503", "unreadable"), ("answered AccessDenied", "forbidden")]
)
def test_storage_that_keeps_failing_is_a_reason(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch, happened: str, status: str
) -> None:
    def failing(uri: str, max_bytes: int) -> None:
        raise StorageError(uri, happened, "wait")

    monkeypatch.setattr(tag_stages, "local_content", failing)
    assert [window.status for window in _windows(videos[0])] == [status]


def test_a_crash_in_one_window_ends_the_attempt_at_its_video(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video of two requests: after the first killed the decoder, the second is not made."""
    stage = DecodeWindows(DecodeConfig(), VIEWS)
    calls = 0

    def dying(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise DecodeError("crashed", "the decoder died")

    monkeypatch.setattr(stage.decoder, "decode", dying)
    monkeypatch.setattr(tag_stages, "WINDOWS_PER_REQUEST", 4)
    windows = list(stage(_listed(videos[0])))
    assert [(window.index, window.status) for window in windows] == [(index, "crashed") for index in range(6)]
    assert calls == 1


def test_damage_costs_the_windows_that_have_it(videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that fails is repeated window by window."""
    stage = DecodeWindows(DecodeConfig(), VIEWS)
    decode = stage.decoder.decode

    def damaged(path: Path, views: Any) -> Any:
        if any(view.times_seconds[0] == pytest.approx(3.0) for view in views):
            raise DecodeError("damaged", "no frame")
        return decode(path, views)

    monkeypatch.setattr(stage.decoder, "decode", damaged)
    assert [window.status for window in stage(_listed(videos[0]))] == ["ok", "ok", "damaged", "ok", "ok", "ok"]


def test_the_views_of_a_whole_video_are_those_of_the_test_protocol(videos: list[Path]) -> None:
    """The frames that SlowFast's formula names, in both containers, whatever rounding their time stamps have."""
    whole = WholeVideo(clips=2, crops=3, frame_stride=2)
    views = WindowViews(grid_of(2.0, 2.0, whole), (8, 64, 64), whole)
    view = ViewConfig(num_frames=8, frame_stride=2, size=64)
    indices = [evaluation_indices(255, 30.0, view, clip, 2).tolist() for clip in (0, 0, 0, 1, 1, 1)]
    for path in videos[:2]:
        (window,) = _windows(path, views)
        assert window.frames is not None
        assert window.frames.shape == (2 * 3 * 8, 64, 64, 3)
        assert [read_frame_number(frame) for frame in window.frames] == list(itertools.chain(*indices))


def test_an_image_is_one_window_of_one_view(tmp_path: Path) -> None:
    moving, page = tmp_path / "moving.gif", tmp_path / "page.jpg"
    more = [drawn(seed=seed) for seed in range(1, 200)]  # as a video it would last eight seconds
    drawn().save(moving, save_all=True, append_images=more)
    page.write_text("<html></html>")
    view = ViewConfig(num_frames=1, size=64, media="image", interpolation="bicubic", crop_share=0.8)
    views = WindowViews(GRID, (1, 64, 64), image=view)
    (refused,) = _windows(page, views)
    assert (refused.status, refused.index) == ("not_an_image", None)
    for path, frames in ((photograph(), 1), (moving, 200)):
        (window,) = _windows(path, views)
        assert window.video["frames"] == frames
        assert window.frames is not None
        assert window.frames.shape == (1, 64, 64, 3)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(window.frames[0], centred(picture.convert("RGB"), 80, 64))


def test_what_is_no_file_or_too_large_is_a_row(videos: list[Path], tmp_path: Path) -> None:
    """A FIFO is looked at, not opened; also where a listed video was replaced by one."""
    path = tmp_path / "video.mp4"
    path.write_bytes(videos[0].read_bytes())
    listed = _listed(path)
    path.unlink()
    os.mkfifo(path)
    assert [window.status for window in DecodeWindows(DecodeConfig(), VIEWS)(listed)] == ["not_a_file"]
    limited = DecodeWindows(DecodeConfig(max_bytes=100), VIEWS)
    assert [window.status for window in limited(_listed(videos[0]))] == ["max_bytes"]


def test_the_windows_of_a_video_share_a_budget_of_cpu(videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that exceeds it is the last one; its windows count."""
    monkeypatch.setattr(tag_stages, "WINDOWS_PER_REQUEST", 2)
    windows = list(DecodeWindows(DecodeConfig(max_cpu_seconds=1e-6), VIEWS)(_listed(videos[0])))
    assert [window.status for window in windows] == ["ok"] * 2 + ["max_cpu_seconds"] * (len(windows) - 2)
    assert len(windows) > 2


def test_pictures_with_hours_between_them_are_one_row(videos: list[Path]) -> None:
    """Windows beyond the frames show the same pictures again."""
    (window,) = DecodeWindows(DecodeConfig(), WindowViews(WindowGrid(0.01, 0.001), (8, 64, 64)), 100)(
        _listed(videos[0])
    )
    assert window.status == "max_repeated_windows"
    assert "over max_repeated_windows=100" in window.message


IMAGE = ViewConfig(num_frames=1, size=64, media="image", interpolation="bicubic", crop_share=0.8)
WHOLE = WholeVideo(clips=2, crops=3, frame_stride=2)
ALL_VIEWS = (
    VIEWS,
    WindowViews(grid_of(2.0, 2.0, WHOLE), (8, 64, 64), WHOLE),
    WindowViews(GRID, (1, 64, 64), image=IMAGE),
)


@pytest.mark.parametrize("views", ALL_VIEWS, ids=["windows", "whole", "image"])
def test_facts_that_no_video_has_are_a_row(views: WindowViews, tmp_path: Path) -> None:
    """A child that a video has taken over may claim anything; a division by it must not end the task."""
    info = VideoInfo(64, 48, 30.0, 60, 2.0, "h264", "mov", 0)
    stage = DecodeWindows(DecodeConfig(), views)
    hijack(stage.decoder)
    for number, lie in enumerate(
        [{"width": 0}, {"height": 0}, {"num_frames": 0}, {"num_frames": 0, "duration_seconds": 0.0}, {"fps": -1.0},
         {"fps": float("inf")}, {"duration_seconds": float("nan")}, {"width": 2**31}]
    ):  # fmt: skip
        path = saying(tmp_path / f"{number}.mp4", ("done", replace(info, **lie)))  # type: ignore[arg-type]
        (window,) = stage(_listed(path))
        assert (window.status, window.index) == ("crashed", None), lie
    assert stage.decoder.children_lost == 8
    stage.decoder.close()


SIDES = st.integers(1, MOST - 1)
REALS = st.just(0.0) | st.floats(LEAST_REAL, MOST_REAL, exclude_max=True)


FACTS = st.builds(VideoInfo, SIDES, SIDES, REALS, SIDES, REALS, st.text(), st.text(), st.just(0), missing_seconds=REALS)


@given(info=FACTS)
def test_any_facts_that_come_through_are_rows(info: VideoInfo, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "some.mp4"
    for views, size in itertools.product(ALL_VIEWS, (0, 50)):
        path.write_bytes(b"x" * size)
        for window in _of_claimed(info, views, path):
            assert window.status in ("ok", "max_repeated_windows")


def _of_claimed(info: VideoInfo, views: WindowViews, path: Path) -> list[DecodedWindow]:
    """The windows of a file of which a child claims these facts."""
    stage = DecodeWindows.__new__(DecodeWindows)
    stage.views, stage.max_repeated_windows, stage._budget = views, 100, retry.RetryBudget()
    stage.decoder = _Claiming(info)  # type: ignore[assignment]
    windows = list(stage(_listed(path)))
    assert windows
    return windows


class _Claiming:
    """Stands where a decoder stands."""

    limits = DecodeConfig()
    cpu_seconds = 0.0

    def __init__(self, info: VideoInfo) -> None:
        self.info = info

    def probe(self, path: Path) -> VideoInfo:
        return self.info

    def decode(self, path: Path, views: Any) -> list[Any]:
        for view in views:
            assert len(view.keys)
            assert np.isfinite(view.keys).all()
        return [np.zeros((len(view.keys), *view.size, 3), np.uint8) for view in views]
