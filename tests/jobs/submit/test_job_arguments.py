"""Command lines that hold another one: own keys first, then the job."""

from __future__ import annotations

import pytest

from jobs.core.errors import UserError
from jobs.submit.job_arguments import JOBS, JobConfig, read_job
from jobs.sweep.plan import COMMANDS


def test_own_keys_come_first_and_the_rest_is_the_jobs() -> None:
    config = read_job(JobConfig, "launch", ["gpus=2", "tag", "demo", "output=o", "gpus=3"])
    assert config == JobConfig(gpus=2, job=("tag", "demo", "output=o", "gpus=3"))


@pytest.mark.parametrize("words", [[], ["gpus=2"], ["gpus=2", "compare"], ["demo", "pretrain"]])
def test_a_line_without_a_known_job_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"must be one of prepare, pretrain.*tag; write `python -m jobs\.submit"):
        read_job(JobConfig, "submit", words)


def test_the_jobs_are_the_commands_that_sweep_knows() -> None:
    assert tuple(COMMANDS) == JOBS
