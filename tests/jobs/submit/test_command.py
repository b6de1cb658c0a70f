"""What `submit` hands over; `tests/infra/test_job_submit.py` submits to a real cluster."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobDetails, JobStatus

from jobs.core.signals import stopping_on_sigterm
from jobs.launch import read_arguments as read_launch_arguments
from jobs.submit import command
from jobs.submit.command import read_arguments
from jobs.submit.followed_job import JobClient
from tests.support.job_details import details


def test_the_entrypoint_is_a_launch_that_reads_back_the_same() -> None:
    config = read_arguments(["id=night", "gpus=8", "tag", "demo", "source=s3://b/two words", "thresholds={a: 1}"])
    program, flag, module, *words = shlex.split(config.entrypoint)
    assert (program, flag, module) == ("python", "-m", "jobs.launch")
    launched = read_launch_arguments(words)
    assert (launched.gpus, launched.job) == (8, config.job)
    assert launched.job[2] == "source=s3://b/two words"


@pytest.mark.parametrize("status", [JobStatus.RUNNING, None])
def test_sigterm_while_the_job_is_looked_for_stops_it_as_well(
    status: JobStatus | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it runs already, once it is submitted just then."""
    jobs: dict[str, JobStatus] = {"night": status} if status else {}

    class Client(JobClient):
        def __init__(self) -> None:
            self.logs_read = 0

        def list_jobs(self) -> list[JobDetails]:
            os.kill(os.getpid(), signal.SIGTERM)
            return [self.get_job_info(name) for name in jobs]

        def submit_job(self, *, submission_id: str, **_: object) -> str:  # type: ignore[override]
            jobs[submission_id] = JobStatus.RUNNING
            return submission_id

        def get_job_info(self, job_id: str) -> JobDetails:
            return details(jobs[job_id], None)

        def stop_job(self, job_id: str) -> bool:
            jobs[job_id] = JobStatus.STOPPED
            return True

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            self.logs_read += 1
            yield f"{job_id} {self.logs_read}\n"

    client = Client()
    monkeypatch.setattr(command, "connected", lambda _seconds: client)
    with pytest.raises(SystemExit, match="3"), stopping_on_sigterm("finished work is kept"):
        command.run(read_arguments(["id=night", "prepare", "source=/videos", "output=/set"]))
    assert jobs == {"night": JobStatus.STOPPED}
    assert client.logs_read == 1  # not once more after the signal
