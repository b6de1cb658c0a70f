"""What the page suggests: commands whose keys exist, and files that do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from jobs.core.config import load_config
from jobs.demo.config import DemoConfig
from jobs.demo.next_steps import next_steps
from jobs.inspect import InspectConfig
from jobs.sweep.plan import read_arguments
from jobs.training.steps.pretrain import PretrainConfig
from pipeline.media import Media
from tests.support.demo_output import write_demo


@pytest.mark.parametrize("media", ["video", "image"])
def test_every_command_is_taken_as_it_stands(media: Media, tmp_path: Path) -> None:
    output = tmp_path / "my demo"
    write_demo(output)
    steps = next_steps(DemoConfig(media=media), output)
    lines = {words[2]: words[3:] for words in (shlex.split(step.command) for step in steps) if words[:1] == ["python"]}
    assert load_config(DemoConfig, "demo", lines.pop("jobs.demo")).compares
    assert load_config(PretrainConfig, "pretrain", lines.pop("jobs.pretrain")).steps == 3000
    assert load_config(InspectConfig, "inspect", lines.pop("jobs.inspect")).data == str(output / "set")
    assert read_arguments(lines.pop("jobs.sweep"))
    assert not lines
    assert all(Path(step.path).exists() for step in steps if step.path)


def test_nothing_is_suggested_that_was_left_out(tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=None, pretrained=None)
    (tmp_path / "tag" / "report.html").unlink()
    steps = next_steps(DemoConfig(), tmp_path)
    assert not [step for step in steps if step.path or "jobs.sweep" in step.command]
