"""Sweeps as people start them: children as processes, one MLflow parent, and the same command again."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.synthetic.motion_videos import render_motion_videos

pytestmark = pytest.mark.ray


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.sweep", *words, f"output={folder / 'sweep'}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def children_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "sweep" / "children.csv").open() as file:
        return {row["child"]: row for row in csv.DictReader(file)}


def test_children_are_run_once_under_one_parent(tmp_path: Path) -> None:
    """Preparing needs no Ray: the cheapest command there is."""
    render_motion_videos(tmp_path / "videos", 16, seed=1, size=64, num_frames=8)
    words = ["prepare", f"source={tmp_path / 'videos'}", "workers=0", "val_share=[0,0.5]"]
    first = sweep(tmp_path, *words, "parallel=2")
    assert first.returncode == 0, first.stderr
    rows = children_of(tmp_path)
    assert {name: row["state"] for name, row in rows.items()} == {"val_share=0": "done", "val_share=0.5": "done"}
    assert {row["clips"] for row in rows.values()} == {"16"}
    shutil.rmtree(tmp_path / "sweep" / "val_share=0")
    again = sweep(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert [row["state"] for row in children_of(tmp_path).values()] == ["done", "done before"]
    _check_mlflow(tmp_path)
    other = sweep(tmp_path, *words[:-1], "val_share=[0,0.25]")
    assert other.returncode == 2
    assert "keys.val_share" in other.stderr


def _check_mlflow(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hiera-video")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["command"] == "sweep"]
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs if run is not parent]
    assert parents == [parent.info.run_id] * 3  # one child was taken away and made anew
    assert parent.info.status == "FINISHED"
    assert parent.data.params["val_share"] == "[0,0.5]"
    report = json.loads((folder / "sweep" / "report.json").read_text())
    assert (report["children"], report["mlflow_run_id"]) == (2, parent.info.run_id)


@pytest.mark.slow
def test_one_childs_mistake_does_not_stop_the_others(tmp_path: Path) -> None:
    render_motion_videos(tmp_path / "videos", 8, seed=1, size=64, num_frames=8)
    places = f"source=[{tmp_path / 'none'},{tmp_path / 'videos'}]"
    answer = sweep(tmp_path, "prepare", places, "workers=0", "tracking.uri=none", "parallel=1")
    assert answer.returncode == 2
    assert [row["state"] for row in children_of(tmp_path).values()] == ["refused", "done"]
    assert "1 of 2 children are not done" in answer.stderr
    assert f"{tmp_path / 'none'}: no such" in answer.stderr.replace("\n", " ")
    assert "Traceback" not in answer.stderr


def test_help_and_dry_run_start_nothing(tmp_path: Path) -> None:
    answer = sweep(tmp_path, "--help")
    assert "JOB [RECIPE] key=[a,b,c]" in answer.stdout
    assert "parallel: int | None = null" in answer.stdout
    dry = sweep(tmp_path, "pretrain", "demo", "data=/d", "seed=[1,2]", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "seed=2" in dry.stdout
    assert not (tmp_path / "sweep").exists()
