"""What `submit` hands over; `tests/infra/test_job_submit.py` submits to a real cluster."""

from __future__ import annotations

import shlex

from jobs.launch import read_arguments as read_launch_arguments
from jobs.submit.command import read_arguments


def test_the_entrypoint_is_a_launch_that_reads_back_the_same() -> None:
    config = read_arguments(["id=night", "gpus=8", "tag", "demo", "source=s3://b/two words", "thresholds={a: 1}"])
    program, flag, module, *words = shlex.split(config.entrypoint)
    assert (program, flag, module) == ("python", "-m", "jobs.launch")
    launched = read_launch_arguments(words)
    assert (launched.gpus, launched.job) == (8, config.job)
    assert launched.job[2] == "source=s3://b/two words"
