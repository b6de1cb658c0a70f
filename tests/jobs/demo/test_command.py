"""The demo's own rules: what it rejects, what it leaves out, what it deletes, how it reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.core.cli import print_report
from jobs.core.errors import UserError
from jobs.demo import command as demo
from jobs.demo.command import DemoConfig


def test_a_source_without_videos_leaves_the_finished_demo_alone(tmp_path: Path) -> None:
    output, empty = tmp_path / "demo", tmp_path / "empty"
    demo.clear_if_changed(DemoConfig(output=str(output)))
    (output / "set").mkdir()
    empty.mkdir()
    with pytest.raises(UserError, match=r"source=.*empty: holds no video"):
        demo.run(DemoConfig(source=str(empty), output=str(output)))
    with pytest.raises(UserError, match=r"source=.*empty: holds no image; give a folder or prefix of images"):
        demo.run(DemoConfig(media="image", source=str(empty), output=str(output)))
    assert (output / "set").exists()


def test_other_keys_start_again_and_equal_ones_resume(tmp_path: Path) -> None:
    first = DemoConfig(output=str(tmp_path))
    demo.clear_if_changed(first)
    (tmp_path / "set").mkdir()
    demo.clear_if_changed(first)
    assert (tmp_path / "set").exists()
    demo.clear_if_changed(DemoConfig(output=str(tmp_path), seed=1))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("columns", ["80", None])  # None: piped
def test_the_closing_report_prints_paths_whole(
    columns: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    report = {
        "evaluate top1": 0.98765,
        "evaluate confusion": f"{tmp_path}/{'a long folder name/' * 8}confusion.png",
        "tag report": f"s3://bucket/{'folder/' * 20}report.html",
        "everything under": str(tmp_path),
        "pretrain note": "a text that is longer than the terminal is wide, with a word of its own" * 2,
    }
    print_report("demo", report)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for key in ("evaluate confusion", "tag report", "everything under"):
        assert lines[lines.index(f"{key}:") + 1] == report[key]
    assert "…" not in "".join(lines)
    assert any("evaluate top1" in line and "0.9877" in line for line in lines)
