"""Which cluster is submitted to, and which exit code follows; `tests/infra/test_job_submit.py` submits real jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus

from jobs.core.errors import UserError, WorkStoppedError
from jobs.core.events import emit
from jobs.submit import followed_job
from jobs.submit.command import SubmitConfig
from jobs.submit.followed_job import FollowedJob, JobClient, connected, exit_code, print_log, submitted
from tests.support.events import events
from tests.support.job_details import details


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


class Shaky(JobClient):
    """A cluster that does not answer some requests."""

    seconds = 5.0

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.jobs: list[str] = []

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def list_jobs(self) -> list[JobDetails]:
        return [details(JobStatus.RUNNING, None) for _ in self.jobs]

    def submit_job(self, *, submission_id: str, **_: object) -> str:  # type: ignore[override]
        self.jobs.append(submission_id)
        self._fail()  # the answer is lost
        return submission_id

    def get_job_info(self, job_id: str) -> JobDetails:
        self._fail()
        return details(JobStatus.SUCCEEDED, 0)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        raise OSError("broken off")
        yield ""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_job, "POLL_SECONDS", 0.01)


LOST = [requests.ConnectionError("reset"), requests.Timeout("silent"), RuntimeError("code 500"), RayError("no")]


@pytest.mark.usefixtures("impatient")
def test_a_cluster_may_be_silent_for_a_while() -> None:
    assert FollowedJob(Shaky(*LOST), "night").wait().status == JobStatus.SUCCEEDED


@pytest.mark.usefixtures("impatient")
def test_a_cluster_that_stays_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shaky, "seconds", 0.05)
    with pytest.raises(WorkStoppedError, match="the cluster does not answer: reset"):
        FollowedJob(Shaky(*[requests.ConnectionError("reset")] * 1000), "night").wait()


@pytest.mark.usefixtures("impatient")
def test_a_submission_whose_answer_was_lost_is_found_again() -> None:
    client = Shaky(requests.ConnectionError("reset"))
    assert client.answer(lambda: submitted(client, "true", "night")) == "night"
    assert client.jobs == ["night"]


@contextmanager
def answering(code: int, text: str) -> Iterator[str]:
    """A server that has one answer for everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("code", "text"), [(401, "Unauthorized"), (403, "Forbidden: Invalid authentication token")])
def test_a_refused_token_is_a_mistake_with_a_remedy(code: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(code, text) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=r"RAY_ADDRESS=http://127.*; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"):
            connected(5)
