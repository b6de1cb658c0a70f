"""The report of a tagging run names its snapshot, which can be read later. No Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.tag import TagConfig, run
from jobs.tagging import job
from pipeline.tagging.reader import read_tags, read_videos
from tests.support.tag_here import runner_here


def test_the_snapshot_of_a_report_can_be_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "task_runner", runner_here)
    torch.manual_seed(0)
    save_model(tmp_path / "w.safetensors", create_model("hiera_test_8x64"), {"classes": json.dumps(MOTION_CLASSES)})
    render_motion_videos(tmp_path / "source", 2, seed=1, size=64, num_frames=30)
    output = str(tmp_path / "tag")
    config = TagConfig(
        source=str(tmp_path / "source"), init=str(tmp_path / "w.safetensors"), output=output, gallery_videos=1,
        tracking=TrackingConfig(uri="none"),
    )  # fmt: skip
    first = run(config)
    assert f"as_of={first['as_of']}" in (Path(output) / "report.html").read_text()
    before = read_tags(output).sort_by("uri")
    time.sleep(0.02)
    render_motion_videos(tmp_path / "source" / "more", 1, seed=2, size=64, num_frames=30)
    second = run(config)
    assert second["version"] > first["version"]
    assert len(read_videos(output)) == 3
    assert read_tags(output, as_of=first["as_of"]).sort_by("uri") == before
    assert len(read_videos(output, as_of=first["as_of"])) == 2
    assert len(read_videos(output, as_of=second["as_of"])) == 3
