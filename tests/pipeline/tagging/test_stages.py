"""The stages of the tagging pipeline, without Ray: which frames a window gets, and what a bad video becomes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tenacity

from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.sampling import ViewConfig, evaluation_indices
from pipeline.storage import retry
from pipeline.storage.files import StorageError, content_version
from pipeline.tagging import stages as tag_stages
from pipeline.tagging.stages import DecodeWindows, ProbeVideos
from pipeline.tagging.window_views import WholeVideo, WindowViews, grid_of
from pipeline.tagging.windows import PROBED_SCHEMA, WindowGrid, plan_units, video_id
from tests.support.failing_server import failing_server
from tests.support.frame_numbers import read_frame_number
from tests.support.s3_server import set_s3_environment

GRID = WindowGrid(2.0, 1.5)
VIEWS = WindowViews(GRID, (8, 64, 64))


def _probed(paths: list[Path]) -> pa.Table:
    rows = [
        {"video_id": video_id(str(path), version), "uri": str(path), "content_version": version, "status": "ok"}
        | {"message": ""}
        for path in paths
        for version in [content_version(str(path)) if path.exists() else "missing"]
    ]
    return ProbeVideos(DecodeConfig())(pa.Table.from_pylist(rows, schema=PROBED_SCHEMA))


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


def test_the_probe_says_what_is_wrong(videos: list[Path]) -> None:
    found = {Path(row["uri"]).name: row for row in _probed(videos).to_pylist()}
    good = [row for row in found.values() if row["status"] == "ok"]
    assert len(good) == 2
    assert all(row["num_frames"] == 255 and row["duration_seconds"] == pytest.approx(8.5, abs=0.05) for row in good)
    reasons = {name: found[name]["status"] for name in ("text.mp4", "empty.avi", "cut.mp4", "none.mp4")}
    assert reasons == {"text.mp4": "not_a_video", "empty.avi": "empty", "cut.mp4": "not_a_video", "none.mp4": "missing"}
    assert all(found[name]["message"] for name in reasons)


def test_windows_hold_their_own_frames_in_full_batches(videos: list[Path]) -> None:
    units = plan_units(_probed(videos[:2]), GRID, 12)
    stage = DecodeWindows(DecodeConfig(), VIEWS, 4)
    batches = list(stage(units))
    assert [len(batch["video"]) for batch in batches] == [4, 4, 4]
    uris = dict(zip(units["unit_id"].to_pylist(), units["uri"].to_pylist(), strict=True))
    windows = [
        (uris[batch["unit_id"][row]], int(batch["window_index"][row]), batch["video"][row])
        for batch in batches
        for row in range(4)
    ]
    assert {batch["status"][row] for batch in batches for row in range(4)} == {"ok"}
    for _, index, frames in windows:
        start = min(index * 1.5, 6.5) * 30
        expected = np.floor(np.linspace(start, start + 59, 8) + 1e-6).astype(int).tolist()
        assert [read_frame_number(frame) for frame in frames] == expected


def test_a_video_that_vanished_keeps_its_rows_and_the_batch_of_the_others(videos: list[Path], tmp_path: Path) -> None:
    gone = tmp_path / "gone.mp4"
    gone.write_bytes(videos[0].read_bytes())
    units = plan_units(_probed([gone, videos[1]]), GRID, 12)
    gone.unlink()
    batches = list(DecodeWindows(DecodeConfig(), VIEWS, 6)(units))
    assert [list(batch["status"]) for batch in batches] == [["ok"] * 6, ["missing"] * 6]
    assert not batches[1]["video"].any()


def test_a_unit_that_killed_two_workers_is_not_tried_again(videos: list[Path], tmp_path: Path) -> None:
    """The counts of two dead workers: a row with the reason for every window, the other unit as ever."""
    units = plan_units(_probed(videos[:2]), GRID, 12)
    bad, good = units["unit_id"].to_pylist()
    (tmp_path / "000000.json").write_text(f'{{"{bad}": 2}}')
    stage = DecodeWindows(DecodeConfig(), VIEWS, 6, str(tmp_path))
    batches = list(stage(units))
    assert [set(batch["status"]) for batch in batches] == [{"ok"}, {"crashed"}]
    assert [set(batch["unit_id"]) for batch in batches] == [{good}, {bad}]


def test_a_unit_whose_decoder_died_is_given_up(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder has tried twice then: a worker that comes after does not try."""
    units = plan_units(_probed(videos[:1]), GRID, 12)
    stage = DecodeWindows(DecodeConfig(), VIEWS, 6, str(tmp_path))

    def dying(*_: object) -> None:
        raise DecodeError("crashed", "the decoder died")

    monkeypatch.setattr(stage.decoder, "decode", dying)
    for _ in range(2):
        assert [set(batch["status"]) for batch in stage(units)] == [{"crashed"}]
        monkeypatch.setattr(stage.decoder, "decode", pytest.fail)


def test_an_object_replaced_after_the_listing_is_a_row_with_that_reason(videos: list[Path], tmp_path: Path) -> None:
    """The scores of another content must not stand under the version that was listed."""
    changing = tmp_path / "changing.mp4"
    changing.write_bytes(videos[0].read_bytes())
    units = plan_units(_probed([changing, videos[1]]), GRID, 12)
    changing.write_bytes(videos[0].read_bytes() + b"x")
    batches = list(DecodeWindows(DecodeConfig(), VIEWS, 6)(units))
    assert [list(batch["status"]) for batch in batches] == [["ok"] * 6, ["replaced"] * 6]


def test_storage_that_fails_now_and_then_costs_no_window(videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())
    row = {"video_id": 1, "uri": "s3://bucket/video.mp4", "content_version": "etag", "status": "ok", "message": ""}
    with failing_server("503", content=videos[0].read_bytes()) as server:
        set_s3_environment(monkeypatch, server.url)
        probed = ProbeVideos(DecodeConfig())(pa.Table.from_pylist([row], schema=PROBED_SCHEMA))
        (batch,) = DecodeWindows(DecodeConfig(), VIEWS, 6)(plan_units(probed, GRID, 12))
    assert list(batch["status"]) == ["ok"] * 6
    assert server.requests == 3 * 3  # probed, fetched, compared with the listing


@pytest.mark.parametrize(
    ("happened", "status"), [("answered 503", "unreadable"), ("answered AccessDenied", "forbidden")]
)
def test_storage_that_keeps_failing_is_a_reason(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch, happened: str, status: str
) -> None:
    def failing(uri: str) -> None:
        raise StorageError(uri, happened, "wait")

    units = plan_units(_probed(videos[:1]), GRID, 12)
    monkeypatch.setattr(tag_stages, "local_copy", failing)
    (batch,) = DecodeWindows(DecodeConfig(), VIEWS, 6)(units)
    assert set(batch["status"]) == {status}


def test_a_crash_in_one_window_ends_the_attempts_at_its_unit(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit of two requests: after the first killed the decoder, the second is not made."""
    units = plan_units(_probed(videos[:1]), GRID, 12)
    stage = DecodeWindows(DecodeConfig(), VIEWS, 6)
    calls = 0

    def dying(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise DecodeError("crashed", "the decoder died")

    monkeypatch.setattr(stage.decoder, "decode", dying)
    monkeypatch.setattr(tag_stages, "WINDOWS_PER_REQUEST", 4)
    (batch,) = stage(units)
    assert list(batch["status"]) == ["crashed"] * 6
    assert calls == 1


def test_the_views_of_a_whole_video_are_those_of_the_test_protocol(videos: list[Path]) -> None:
    """The frames that SlowFast's formula names, in both containers, whatever rounding their time stamps have."""
    whole = WholeVideo(clips=2, crops=3, frame_stride=2)
    views = WindowViews(grid_of(2.0, 2.0, whole), (8, 64, 64), whole)
    units = plan_units(_probed(videos[:2]), views.grid, 12)
    (batch,) = DecodeWindows(DecodeConfig(), views, 2)(units)
    assert batch["video"].shape == (2, 2 * 3 * 8, 64, 64, 3)
    view = ViewConfig(num_frames=8, frame_stride=2, size=64)
    indices = [evaluation_indices(255, 30.0, view, clip, 2).tolist() for clip in (0, 0, 0, 1, 1, 1)]
    for video in batch["video"]:
        assert [read_frame_number(frame) for frame in video] == list(itertools.chain(*indices))
