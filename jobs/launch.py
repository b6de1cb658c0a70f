"""Inside a submitted job: check a command's arguments, wait for GPUs, run the command.

Usage: ``python -m jobs.launch [gpus=N] [stop_on_mistake=true] JOB [RECIPE] [key=value ...]``. It runs where `ray
job submit` and KubeRay start entrypoints, on the head, and ends with the command's exit code.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from jobs.core.cli import Command, echo
from jobs.core.errors import StopRequestedError
from jobs.core.ray_cluster import connect
from jobs.submit.job_arguments import JobConfig, read_job
from jobs.submit.ray_jobs import stop_this_job, submission_id, wait_for_gpus

USAGE = "[gpus=N] [stop_on_mistake=true] JOB [RECIPE] [key=value ...]"
DESCRIPTION = (
    "Inside a submitted job: check a command's arguments on the head, ask the autoscaler for GPUs and wait for them, "
    "run the command. Ends with the command's exit code."
)
MISTAKE = 2
STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(JobConfig):
    """A command, and what it waits for."""

    gpu_minutes: float = 60.0
    """Minutes to wait for them."""
    stop_on_mistake: bool = False
    """End the job as STOPPED when the command finds a mistake in its arguments: KubeRay retries FAILED jobs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu_minutes <= 0:
            raise ValueError(f"gpu_minutes={self.gpu_minutes}: must be positive; use 60")

    @property
    def command(self) -> list[str]:
        """The command line of the job."""
        return [sys.executable, "-m", f"jobs.{self.job[0]}", *self.job[1:]]


def read_arguments(words: Sequence[str]) -> LaunchConfig:
    """The command line as a configuration.

    Raises:
        UserError: as `read_job`.
    """
    return read_job(LaunchConfig, "launch", words)


def run(config: LaunchConfig) -> dict[str, Any]:
    """Check, wait, run. Ends the process with the command's exit code."""
    code = exit_code([*config.command, "--dry-run"])
    if code == 0 and config.gpus:
        connect()
        wait_for_gpus(config.gpus, config.gpu_minutes * 60)
        ray.shutdown()
    code = code or exit_code(config.command)
    job_id = submission_id()
    if code == MISTAKE and config.stop_on_mistake and job_id:
        echo(f"{config.job[0]}: a mistake in the arguments (above); this job is stopped, so that it is not retried")
        connect()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop_this_job(job_id, STOP_SECONDS)
    sys.exit(code)


def exit_code(command: Sequence[str]) -> int:
    """Run a command to its end. SIGTERM reaches it too, since Ray signals a whole job, and it decides how to end."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except StopRequestedError:
            continue


def dry_run(config: LaunchConfig) -> dict[str, Any]:
    """The command that would run."""
    return {"gpus": config.gpus, "command": " ".join(["python", *config.command[1:]])}


main = Command(
    "launch", LaunchConfig, run, description=DESCRIPTION, dry_run=dry_run, load=read_arguments, usage=USAGE,
    keep_report=False,
)  # fmt: skip


if __name__ == "__main__":
    main()
