"""The demo's own rules: what it rejects, what it leaves out, what it deletes, how it reports."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.core.cli import Command, print_report
from jobs.core.errors import UserError
from jobs.demo import command as demo
from jobs.demo import stages
from jobs.demo.config import DemoConfig


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
    demo.clear_if_changed(DemoConfig(output=str(tmp_path), compare=False))
    assert (tmp_path / "set").exists()
    demo.clear_if_changed(DemoConfig(output=str(tmp_path), seed=1))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("compare", [True, False])
def test_the_run_from_scratch_has_the_same_settings(
    compare: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that only note their arguments: the order, the report, and what differs between the two ways."""
    done: list[list[str]] = []

    def note(command: Command[Any], arguments: list[str]) -> dict[str, Any]:
        done.append([command.name, *arguments])
        output = dict(word.partition("=")[::2] for word in arguments).get("output", "")
        if command.name == "evaluate":
            Path(output).mkdir()
            score = {"top1": 0.5 if Path(output).name == "evaluate_scratch" else 0.25, "videos_scored": 16}
            (Path(output) / "report.json").write_text(json.dumps(score))
            return score
        return {"final_loss": 1.5} if command.name in ("pretrain", "finetune") else {}

    labelled = SimpleNamespace(num_clips=lambda split, labelled_only: 160, media="video")
    monkeypatch.setattr(demo, "run_stage", note)
    monkeypatch.setattr(demo, "make_source", lambda config, folder: None)
    monkeypatch.setattr(demo, "open_prepared", lambda uri: labelled)
    monkeypatch.setattr(stages, "open_prepared", lambda uri: labelled)
    monkeypatch.setattr(demo.ray, "shutdown", lambda: None)
    config = DemoConfig(output=str(tmp_path), compare=compare)
    report = demo.run(config)
    second = ["finetune", "evaluate"] if compare else []
    assert [name for name, *_ in done] == ["prepare", "pretrain", "finetune", "evaluate", *second, "tag", "compare"]
    tuned = [{word for word in words if not word.startswith("output=")} for name, *words in done if name == "finetune"]
    assert tuned[0] - tuned[-1] == ({f"init={tmp_path}/pretrain"} if compare else set())
    assert tuned[-1] <= tuned[0]
    expected = {"top-1 from scratch": 0.5} if compare else {}
    assert {key: value for key, value in report.items() if key.startswith("top-1")} == {
        **expected, "top-1 pretrained": 0.25,
    }  # fmt: skip
    assert report["labelled training clips"] == 160
    assert ("finetune from scratch final_loss" in report) == compare
    assert demo.draw(config, report)["open this first"] == f"{tmp_path}/report.html"


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
