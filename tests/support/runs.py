"""Small training runs as processes of their own: started, waited for, killed, and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from jobs.checkpoints.store import complete_steps
from jobs.synthetic.motion_videos import render_motion_videos

MODEL = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "view.frame_stride=1"]
SMALL = [*MODEL, "global_batch=4", "micro_batch=2", "checkpoint.every_steps=2", "picture_clips=0", "trace_samples=true"]


def command(module: str, *keys: str) -> list[str]:
    """The command line of a command, given as the name of its module."""
    return [sys.executable, "-m", module, *keys]


def run(module: str, *keys: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command run to its end."""
    return subprocess.run(
        command(module, *keys),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def prepare_small_set(folder: Path, videos: int = 16, seed: int = 2) -> Path:
    """A prepared set of rendered videos of 8 frames."""
    render_motion_videos(folder / "videos", videos, seed=seed, size=64, num_frames=8)
    run("jobs.prepare", f"source={folder / 'videos'}", f"output={folder / 'set'}", "workers=0").check_returncode()
    return folder / "set"


def pretrain_keys(data: Path, output: Path | str, *more: str) -> list[str]:
    """Arguments of a small pretraining run."""
    return ["demo", f"data={data}", f"output={output}", *SMALL, *more]


def wait_for_checkpoint(output: Path | str, step: int, process: subprocess.Popen[Any], seconds: float = 300) -> None:
    """Wait until a run has completed a checkpoint of that step or a later one."""
    ends_at = time.monotonic() + seconds
    while max(complete_steps(str(output)), default=0) < step:
        assert time.monotonic() < ends_at, f"no checkpoint of step {step}"
        assert process.poll() is None, "ended before it could be disturbed"
        time.sleep(0.05)


def wait_for_generation(output: Path | str, number: int, process: subprocess.Popen[Any], seconds: float = 300) -> None:
    """Wait until a group of workers, the first is 1, has saved steps."""
    ends_at = time.monotonic() + seconds
    while not list(Path(output, "journal").glob(f"step-*-generation-{number:04d}.jsonl")):
        assert time.monotonic() < ends_at, f"generation {number} saved nothing"
        assert process.poll() is None, "ended before it could be disturbed"
        time.sleep(0.05)


def family_of(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """A process and all that it started."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def kill_family(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to the driver, its Ray and its workers at once."""
    family = family_of(process)
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait(30)


def journal(output: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in journal(output)]


def samples(output: Path) -> list[Sequence[str]]:
    """The sample ids of every step."""
    return [line["sample_ids"] for line in journal(output)]
