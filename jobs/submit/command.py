"""Submit a command to a Ray cluster, print its log, and end as it ends.

Usage: ``RAY_ADDRESS=http://HEAD:8265 python -m jobs.submit [id=NAME] [gpus=N] JOB [RECIPE] [key=value ...]``. For
supervisors (a CronJob, a Slurm script): the exit code is the command's own, SIGTERM stops the job, and the same id
again follows a job that still runs instead of starting a second one.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from jobs.core.cli import Command
from jobs.core.errors import StopRequestedError
from jobs.core.events import format_words
from jobs.core.signals import sigterm_delayed
from jobs.submit.followed_job import FollowedJob, connected, exit_code, submitted
from jobs.submit.job_arguments import JobConfig, read_job

USAGE = "[id=NAME] [gpus=N] [seconds=S] JOB [RECIPE] [key=value ...]"
DESCRIPTION = (
    "Submit a command to the Ray cluster of RAY_ADDRESS (http://HEAD:8265), print its log, and end with its exit code. "
    "SIGTERM stops the job; then the exit code is 3."
)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(JobConfig):
    """A command, and how it is submitted."""

    id: str | None = None
    """Submission id: a job of this id that runs is followed, one that failed is followed by `ID-2`, `ID-3`, ...
    Default: a new one."""
    seconds: float = 20.0
    """How long a cluster may be silent before it counts as lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds <= 0:
            raise ValueError(f"seconds={self.seconds}: must be positive; use 20")

    @property
    def entrypoint(self) -> str:
        """What Ray runs on the head."""
        return shlex.join(["python", "-m", "jobs.launch", f"gpus={self.gpus}", *format_words(), *self.job])


def read_arguments(words: Sequence[str]) -> SubmitConfig:
    """The command line as a configuration.

    Raises:
        UserError: as `read_job`.
    """
    return read_job(SubmitConfig, "submit", words)


def run(config: SubmitConfig) -> dict[str, Any]:
    """Submit or find the job, follow it, and end the process with its exit code.

    Raises:
        UserError: there is no cluster at RAY_ADDRESS, or it refuses the token.
        WorkStoppedError: the cluster was lost.
    """
    client = connected(config.seconds)
    name = config.id or f"{config.job[0]}-{uuid4().hex[:12]}"
    job: FollowedJob | None = None
    stopped = False
    while True:
        try:
            with sigterm_delayed():  # else a job could run whose id is not known here, and that nobody stops
                if job and stopped:
                    job.stop()
                job = job or FollowedJob(client, client.answer(lambda: submitted(client, config.entrypoint, name)))
            details = job.wait()
            break
        except StopRequestedError:
            if job is None:
                raise
            stopped = True
    sys.exit(exit_code(details, stopped))


def dry_run(config: SubmitConfig) -> dict[str, Any]:
    """What would be submitted, and where."""
    return {"cluster": os.environ.get("RAY_ADDRESS", "RAY_ADDRESS is not set"), "entrypoint": config.entrypoint}


main = Command(
    "submit", SubmitConfig, run, description=DESCRIPTION, dry_run=dry_run, load=read_arguments, usage=USAGE,
    keep_report=False,
)  # fmt: skip
