"""The demo's own rules: what it refuses, what it leaves out, what it clears away."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import demo, prepare
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
    return {stage.name: demo._missing_labels(stage, config) for stage in demo._stages(config, str(config.source))}


def test_a_source_without_videos_leaves_the_finished_demo_alone(tmp_path: Path) -> None:
    output, empty = tmp_path / "demo", tmp_path / "empty"
    demo._start_afresh_if_changed(DemoConfig(output=str(output)))
    (output / "set").mkdir()
    empty.mkdir()
    with pytest.raises(UserError, match=r"source=.*empty: holds no video"):
        demo.run(DemoConfig(source=str(empty), output=str(output)))
    assert (output / "set").exists()


def test_other_dials_start_afresh_and_equal_ones_go_on(tmp_path: Path) -> None:
    first = DemoConfig(output=str(tmp_path))
    demo._start_afresh_if_changed(first)
    (tmp_path / "set").mkdir()
    demo._start_afresh_if_changed(first)
    assert (tmp_path / "set").exists()
    demo._start_afresh_if_changed(DemoConfig(output=str(tmp_path), seed=1))
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


def test_every_stage_prints_a_command_that_its_program_takes(videos: Path, tmp_path: Path) -> None:
    for stage in demo._stages(DemoConfig(source=str(videos), output=str(tmp_path)), str(videos)):
        config = demo.load_config(stage.config_class, stage.name, stage.arguments)
        assert isinstance(config, stage.config_class)
