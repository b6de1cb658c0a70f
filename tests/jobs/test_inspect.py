"""Figures, tables and the contact sheet of prepared sets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest

from jobs import inspect
from jobs.core.cli import run_and_report
from jobs.core.errors import UserError
from jobs.inspect import InspectConfig
from jobs.prepare import command as prepare
from jobs.prepare.command import PrepareConfig
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.transcode.config import TranscodeConfig

VIDEOS = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos of each class, and three bad ones."""
    folder = tmp_path_factory.mktemp("source")
    render_motion_videos(folder, VIDEOS, 0, size=96, num_frames=20)
    (folder / "grows" / "empty.mp4").touch()
    for name in ("text.mp4", "more.mp4"):
        (folder / "shrinks" / name).write_text("no video")
    return folder


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "set"
    prepare_set(source, output)
    return output


def prepare_set(source: Path, output: Path, **changes: Any) -> None:
    tracking = TrackingConfig(uri="none")
    prepare.run(PrepareConfig(source=str(source), output=str(output), workers=0, tracking=tracking, **changes))


def test_counts_tables_and_contact_sheet(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "sheet.png"
    report = run_and_report(inspect.main, InspectConfig(str(prepared), picture=str(picture), pictures=10))
    assert report["clips"] == VIDEOS
    assert sum(report["codecs"].values()) == VIDEOS
    assert set(report["codecs"]) == {"h264", "vp9"}
    assert report["sizes"] == {"96x96": VIDEOS}
    assert report["duration_seconds"]["median"] == pytest.approx(20 / 30, abs=0.01)
    assert sum(report["rejected"].values()) == 3
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "empty.mp4" in shown
    assert "turns_clockwise" in shown
    assert shown.count("stored_bytes") == 1
    assert shown.endswith(f"contact_sheet:\n  {picture}\n")
    sheet = cv2.imread(str(picture))
    assert sheet is not None
    assert (sheet < 100).any(axis=2).mean() > 0.2  # the frames' dark background


def test_references_and_an_older_version(source: Path, tmp_path: Path) -> None:
    """Pictures come from the originals; a missing one has none. The older version has its own counts."""
    folder, output = tmp_path / "source", tmp_path / "set"
    shutil.copytree(source / "grows", folder)
    prepare_set(folder, output, transcode=TranscodeConfig(mode="reference"))
    missing = sorted(folder.glob("*_0*"))[0]
    prepare_set(folder, output, transcode=TranscodeConfig(mode="reference"), exclude=missing.name)
    missing.unlink()
    now = run_and_report(inspect.main, InspectConfig(str(output), picture=str(tmp_path / "now.png")))
    before = run_and_report(inspect.main, InspectConfig(str(output), version=1, picture=str(tmp_path / "before.png")))
    assert (now["clips"], before["clips"]) == (2, 3)
    assert (sum(now["codecs"].values()), sum(before["codecs"].values())) == (2, 3)
    assert now["rejected"] == before["rejected"] | {"excluded": 1}
    assert now["classes"] == 0
    assert (tmp_path / "before.png").read_bytes().startswith(b"\x89PNG")
    assert "contact_sheet" not in run_and_report(inspect.main, InspectConfig(str(output), pictures=0))


def test_figures_are_printed_before_the_picture(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a label does to the library that draws."""

    def fails(cells: Any) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr(inspect, "contact_sheet", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        run_and_report(inspect.main, InspectConfig(str(prepared)))
    shown = capsys.readouterr().out
    assert "turns_clockwise" in shown
    assert "stored_bytes" in shown


def test_data_that_is_no_prepared_set(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(UserError, match="no prepared set"):
        inspect.run(InspectConfig(str(tmp_path)))
    with pytest.raises(UserError, match="no version 9"):
        inspect.run(InspectConfig(str(prepared), version=9))
