"""A sweep that is killed, and stopped, in the middle of a child: the same command finishes it. Children are real."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run

from jobs.checkpoints.store import complete_steps
from jobs.runs.tracking import tracking_client
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import render_motion_videos
from tests.jobs.sweep.test_command import children_of
from tests.support.runs import (
    SMALL,
    command,
    family_of,
    kill_family,
    losses,
    prepare_small_set,
    run,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

STEPS = 30


Start = Callable[[Sequence[str]], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts sweeps, of which none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command("jobs.sweep", *words), start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            kill_family(process)


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def states(folder: Path) -> dict[str, str]:
    return {name: row["state"] for name, row in children_of(folder).items()}


def runs_of(sweep: Path) -> tuple[Run, list[Run]]:
    """The parent in MLflow, and all other runs."""
    client = tracking_client(TrackingConfig(), str(sweep))
    runs = client.search_runs([client.get_experiment_by_name("hiera-video").experiment_id])
    (parent,) = [found for found in runs if found.data.tags["command"] == "sweep"]
    return parent, [found for found in runs if found.data.tags["command"] == "pretrain"]


def test_killed_and_stopped_in_its_second_child_it_runs_each_child_once(tmp_path: Path, start: Start) -> None:
    data, sweep = prepare_small_set(tmp_path), tmp_path / "sweep"
    words = ["pretrain", "demo", f"data={data}", *SMALL, f"steps={STEPS}", "seed=[0,1]", "parallel=1"]
    words.append(f"output={sweep}")
    killed = start(words)
    wait_for_checkpoint(sweep / "seed=1", 2, killed, seconds=900)
    done = files_of(sweep / "seed=0")
    kill_family(killed)
    assert not (sweep / "seed=1" / "report.json").exists()

    stopped = start(words)
    wait_for_checkpoint(sweep / "seed=1", max(complete_steps(str(sweep / "seed=1"))) + 2, stopped, seconds=600)
    os.kill(stopped.pid, signal.SIGTERM)
    assert stopped.wait(timeout=300) == 3
    assert states(tmp_path) == {"seed=0": "done before", "seed=1": "stopped"}
    assert runs_of(sweep)[0].info.status == "KILLED"

    finished = run("jobs.sweep", *words)
    assert finished.returncode == 0, finished.stderr
    assert files_of(sweep / "seed=0") == done
    assert states(tmp_path) == {"seed=0": "done before", "seed=1": "done"}
    assert all(float(row["final_loss"]) > 0 for row in children_of(tmp_path).values())
    check_mlflow(sweep)


def check_mlflow(sweep: Path) -> None:
    """One parent, a run a child, and every step of each once."""
    parent, children = runs_of(sweep)
    client = tracking_client(TrackingConfig(), str(sweep))
    assert [child.data.tags["mlflow.parentRunId"] for child in children] == [parent.info.run_id] * 2
    assert {found.info.status for found in (parent, *children)} == {"FINISHED"}
    for child in children:
        history = client.get_metric_history(child.info.run_id, "loss")
        journal = losses(Path(child.data.tags["output"]))
        assert sorted((entry.step, entry.value) for entry in history) == list(enumerate(journal, start=1))
        assert len(journal) == STEPS


def test_sigterm_while_a_child_still_starts_is_a_stop(tmp_path: Path, start: Start) -> None:
    """It has no handler yet and dies of the signal."""
    render_motion_videos(tmp_path / "videos", 8, seed=1, size=64, num_frames=8)
    words = ["prepare", f"source={tmp_path / 'videos'}", "workers=0", "val_share=[0,0.25,0.5]", "parallel=1"]
    words += ["tracking.uri=none", f"output={tmp_path / 'sweep'}"]
    process = start(words)
    wait_for_child(process, "jobs.prepare")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 3
    assert list(states(tmp_path).values()) == ["stopped", "not started", "not started"]
    finished = run("jobs.sweep", *words)
    assert finished.returncode == 0, finished.stderr
    assert set(states(tmp_path).values()) == {"done"}


def wait_for_child(process: subprocess.Popen[bytes], module: str) -> None:
    ends_at = time.monotonic() + 300
    while not any(module in words_of(member) for member in family_of(process)[1:]):
        assert time.monotonic() < ends_at
        assert process.poll() is None
        time.sleep(0.01)


def words_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
