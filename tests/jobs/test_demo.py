"""The demo's own rules: what it rejects, what it leaves out, what it deletes, how it reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import demo, prepare
from jobs.core.cli import print_report
from jobs.core.errors import UserError
from jobs.demo import DemoConfig
from jobs.runs.tracking import TrackingConfig
from jobs.synthetic.motion_videos import render_motion_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    render_motion_videos(folder, 8, seed=0, size=64, num_frames=20)
    return folder


def _prepared(source: Path, output: Path) -> None:
    prepare.run(
        prepare.PrepareConfig(
            source=str(source), output=str(output / "set"), workers=0, tracking=TrackingConfig(uri="none")
        )
    )


def _left_out(config: DemoConfig) -> dict[str, str | None]:
    return {name: demo.missing_labels(name, config) for name in (stage.command.name for stage in demo.STAGES)}


def test_a_source_without_videos_leaves_the_finished_demo_alone(tmp_path: Path) -> None:
    output, empty = tmp_path / "demo", tmp_path / "empty"
    demo.clear_if_changed(DemoConfig(output=str(output)))
    (output / "set").mkdir()
    empty.mkdir()
    with pytest.raises(UserError, match=r"source=.*empty: holds no video"):
        demo.run(DemoConfig(source=str(empty), output=str(output)))
    assert (output / "set").exists()


def test_other_keys_start_again_and_equal_ones_resume(tmp_path: Path) -> None:
    first = DemoConfig(output=str(tmp_path))
    demo.clear_if_changed(first)
    (tmp_path / "set").mkdir()
    demo.clear_if_changed(first)
    assert (tmp_path / "set").exists()
    demo.clear_if_changed(DemoConfig(output=str(tmp_path), seed=1))
    assert not (tmp_path / "set").exists()


def test_bare_videos_leave_out_what_needs_labels(videos: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in videos.rglob("*.*"):
        (bare / path.name).write_bytes(path.read_bytes())
    config = DemoConfig(source=str(bare), output=str(tmp_path / "demo"))
    _prepared(bare, tmp_path / "demo")
    reasons = _left_out(config)
    assert [name for name, reason in reasons.items() if reason] == ["finetune", "evaluate", "tag"]
    assert "annotations.csv" in str(reasons["finetune"])


def test_labels_without_held_out_videos_leave_out_evaluation_alone(videos: Path, tmp_path: Path) -> None:
    paths = sorted(videos.rglob("*.*"))
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,split\n" + "".join(f"{path},{path.parent.name},train\n" for path in paths))
    config = DemoConfig(source=str(listing), output=str(tmp_path / "demo"))
    _prepared(listing, tmp_path / "demo")
    assert [name for name, reason in _left_out(config).items() if reason] == ["evaluate"]


def test_every_stage_prints_a_command_that_works(videos: Path, tmp_path: Path) -> None:
    """Also where a path holds a space."""
    config = DemoConfig(source=str(videos), output=str(tmp_path / "my demo"))
    for stage in demo.STAGES:
        arguments = demo.stage_arguments(stage, config, str(videos))
        loaded = demo.load_config(stage.command.config_class, stage.command.name, arguments)
        assert isinstance(loaded, stage.command.config_class)
        assert "my demo" in (loaded.output or loaded.tracking.uri)


def test_labels_are_passed_on_where_there_are_any(videos: Path, tmp_path: Path) -> None:
    assert "annotations=null" in demo.stage_arguments(demo.STAGES[0], DemoConfig(), str(videos))
    (tmp_path / "annotations.csv").touch()
    assert f"annotations={tmp_path}/annotations.csv" in demo.stage_arguments(
        demo.STAGES[0], DemoConfig(), str(tmp_path)
    )


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
