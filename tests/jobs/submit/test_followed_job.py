"""Which cluster is submitted to, and which exit code follows; `tests/infra/test_job_submit.py` submits real jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs.core.errors import UserError
from jobs.core.events import emit
from jobs.submit.command import SubmitConfig
from jobs.submit.followed_job import connected, exit_code, print_log
from tests.support.events import events


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


def test_events_of_a_job_are_passed_on_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log comes in pieces that end anywhere."""
    emit("step", "step 3", {"loss": 0.5}, step=3)
    line = capsys.readouterr().err

    class Client:
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            text = f"Runtime env is setting up.\n{line}without an end"
            for start in range(0, len(text), 50):
                yield text[start : start + 50]

    monkeypatch.setenv("HIERA_LOG", "json")
    print_log(Client(), "job")  # type: ignore[arg-type]
    found = events(capsys.readouterr().err)
    messages = [(event["event"], event["message"]) for event in found]
    assert messages == [("output", "Runtime env is setting up."), ("step", "step 3"), ("output", "without an end")]
    assert SubmitConfig(job=("tag", "demo")).entrypoint == "python -m jobs.launch gpus=0 log=json tag demo"
