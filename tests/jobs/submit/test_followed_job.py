"""Which cluster is submitted to, and which exit code follows; `tests/infra/test_job_submit.py` submits real jobs."""

from __future__ import annotations

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs.core.errors import UserError
from jobs.submit.followed_job import connected, exit_code


def details(status: JobStatus, code: int | None) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        entrypoint="",
        status=status,
        submission_id="night",
        driver_exit_code=code,
    )


@pytest.mark.parametrize(
    ("status", "code", "stopped", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, False, 0),
        (JobStatus.FAILED, 2, False, 2),
        (JobStatus.FAILED, 3, False, 3),
        (JobStatus.FAILED, 1, False, 1),
        (JobStatus.FAILED, None, False, 1),  # its supervisor died
        (JobStatus.FAILED, 1, True, 3),
        (JobStatus.STOPPED, None, True, 3),
        (JobStatus.STOPPED, None, False, 3),  # by somebody else: what is finished is kept all the same
        (JobStatus.SUCCEEDED, 0, True, 0),  # it was faster
    ],
)
def test_the_exit_code_is_the_commands(status: JobStatus, code: int | None, stopped: bool, expected: int) -> None:
    assert exit_code(details(status, code), stopped) == expected


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379", "auto"])
def test_an_address_that_is_no_dashboard_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="must be the address of a Ray dashboard; write http://HEAD:8265"):
        connected(1)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=http://127\.0\.0\.1:9: must be the address of a running Ray"):
        connected(0.1)
