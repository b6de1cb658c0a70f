"""Training that is killed: SIGKILL of everything, SIGTERM, a server that is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.checkpoint import complete_steps
from jobs.motion_videos import render_motion_videos

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STEPS = 8
KEYS = (
    "model=mae_hiera_test_8x64 mask_ratio=0.75 view.num_frames=8 view.size=64 view.frame_stride=1 global_batch=4 "
    f"micro_batch=2 steps={STEPS} checkpoint.every_steps=2 picture_clips=0 trace_samples=true"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    render_motion_videos(folder / "videos", 16, seed=2, size=64, num_frames=8)
    run("prepare", f"source={folder / 'videos'}", f"output={folder / 'set'}", "workers=0").check_returncode()
    return folder / "set"


def command(program: str, *keys: str) -> list[str]:
    return [sys.executable, "-m", f"jobs.{program}", *keys]


def run(program: str, *keys: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(program, *keys), capture_output=True, text=True, timeout=600, check=False)


def pretrain_keys(data: Path, output: Path, *more: str) -> list[str]:
    return ["demo", f"data={data}", f"output={output}", *KEYS, *more]


def start(data: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command("pretrain", *pretrain_keys(data, output)), start_new_session=True)


def wait_for_checkpoint(output: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + 300
    while max(complete_steps(str(output)), default=0) < step:
        assert time.monotonic() < ends_at
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.05)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver, its Ray and its workers at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> list[float]:
    output = data.parent / "uninterrupted"
    run("pretrain", *pretrain_keys(data, output)).check_returncode()
    return losses(output)


def test_killed_twice_the_losses_are_the_same_to_the_last_bit(
    data: Path, uninterrupted: list[float], tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    for step in (2, 4):
        process = start(data, output)
        wait_for_checkpoint(output, step, process)
        kill_family(process)
    done = run("pretrain", *pretrain_keys(data, output))
    assert done.returncode == 0, done.stderr
    assert losses(output) == uninterrupted


def test_sigterm_leaves_a_checkpoint_and_exit_code_3(data: Path, uninterrupted: list[float], tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    process = start(data, output)
    wait_for_checkpoint(output, 2, process)
    os.kill(process.pid, signal.SIGTERM)
    code = process.wait(timeout=200)
    assert code in (0, 3)  # 0 when the last step was faster than the signal
    assert run("pretrain", *pretrain_keys(data, output)).returncode == 0
    assert losses(output) == uninterrupted


def test_a_dead_tracking_server_changes_nothing_and_sync_sends_it_later(
    data: Path, uninterrupted: list[float], tmp_path: Path
) -> None:
    output = tmp_path / "untracked"
    done = run("pretrain", *pretrain_keys(data, output, "tracking.uri=http://127.0.0.1:9"))
    assert done.returncode == 0, done.stderr
    assert losses(output) == uninterrupted
    store = f"sqlite:///{tmp_path / 'later.db'}"
    synced = run("sync", f"output={output}", f"tracking.uri={store}")
    assert synced.returncode == 0, synced.stderr
    assert str(STEPS) in synced.stdout
