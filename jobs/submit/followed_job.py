"""A job of a Ray cluster as its submitter sees it: submitted or found again, followed to its end, its exit code."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp.client_exceptions import ClientError
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.core.cli import echo, write
from jobs.core.errors import UserError, WorkStoppedError
from jobs.core.events import is_json, relay
from jobs.core.text import printable_part
from pipeline.storage.errors import first_line

POLL_SECONDS = 1.0
LOG_SECONDS = 10.0  # for the rest of the log, once the job has ended
STOPPED_CODE = 3
# A lost connection (an OSError of requests), an answer of 500 and more, a wrong token.
TROUBLE = (OSError, RuntimeError, RayError)
T = TypeVar("T")


class JobClient(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
    """Ray's client with requests that end: its own wait for ever for a host that has vanished."""

    seconds = 20.0
    """How long a cluster may be silent."""

    def _do_request(self, *words: Any, **options: Any) -> Any:
        return super()._do_request(*words, timeout=self.seconds, **options)

    def answer(self, ask: Callable[[], T]) -> T:
        """What the cluster answers, asked again while it does not.

        Raises:
            WorkStoppedError: it has been silent for so long.
        """
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                return ask()
            except TROUBLE as error:
                if time.monotonic() > deadline:
                    raise WorkStoppedError(f"the cluster does not answer: {first_line(error)}") from error
            time.sleep(POLL_SECONDS)


def connected(seconds: float) -> JobClient:
    """A client of the cluster, once it answers.

    Raises:
        UserError: it does not, or refuses the token.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        raise UserError(f"RAY_ADDRESS={address}: must be the address of a Ray dashboard; write http://HEAD:8265")
    deadline = time.monotonic() + seconds
    while True:
        try:
            client = JobClient(address)
            client.seconds = seconds
            return client
        except (RuntimeError, RayError) as error:
            raise UserError(
                f"RAY_ADDRESS={address}: {first_line(error)}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"RAY_ADDRESS={address}: must be the address of a running Ray cluster; it does not answer"
                ) from error
            time.sleep(POLL_SECONDS)


def submitted(client: JobSubmissionClient, entrypoint: str, name: str) -> str:
    """The id of the job: a new one of this name, or the one that has not failed. Asked again, it submits none twice."""
    known = {job.submission_id: job.status for job in client.list_jobs()}
    attempt = 1
    while known.get(job_id := name if attempt == 1 else f"{name}-{attempt}") in (
        JobStatus.FAILED,
        JobStatus.STOPPED,
    ):
        attempt += 1
    if job_id in known:
        echo(f"submit: {job_id} is {known[job_id].lower()} already; following it")
        return job_id
    return str(client.submit_job(entrypoint=entrypoint, submission_id=job_id))


class FollowedJob:
    """A job whose log is printed as it comes."""

    def __init__(self, client: JobClient, job_id: str) -> None:
        self.job_id = job_id
        self._client = client
        self._printer = threading.Thread(target=print_log, args=(client, job_id), daemon=True)
        self._printer.start()

    def wait(self) -> JobDetails:
        """Wait for its end, and of its log.

        Raises:
            WorkStoppedError: the cluster was silent for too long.
        """
        while not (details := self._client.answer(lambda: self._client.get_job_info(self.job_id))).status.is_terminal():
            time.sleep(POLL_SECONDS)
        self._printer.join(LOG_SECONDS)
        return details

    def stop(self) -> None:
        """Ask it to stop.

        Raises:
            WorkStoppedError: the cluster was silent for too long.
        """
        echo(f"submit: stopping {self.job_id}")
        self._client.answer(lambda: self._client.stop_job(self.job_id))


def print_log(client: JobSubmissionClient, job_id: str) -> None:
    """Print what a job prints, until it ends or the connection does; `FollowedJob.wait` reports the second."""

    async def tail() -> None:
        rest = ""
        async for lines in client.tail_job_logs(job_id):
            rest = passed_on(rest + lines)
        passed_on(f"{rest}\n" if rest else "")

    try:
        asyncio.run(tail())
    except (*TROUBLE, ClientError) as error:
        echo(f"submit: the log of {job_id} is printed no further: {first_line(error)}", warning=True)


def passed_on(lines: str) -> str:
    """Print a part of a job's log; as events only the lines that are whole, and what is left over."""
    if not is_json():
        write(printable_part(lines), end="")
        return ""
    *whole, rest = lines.split("\n")
    for line in filter(None, whole):
        relay(line)
    return rest


def exit_code(details: JobDetails, stopped: bool) -> int:
    """The command's own exit code; 3 when the job was stopped, 1 where no code is known."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED_CODE
    echo(f"submit: {details.submission_id} {details.status.lower()}")
    return STOPPED_CODE if stopped else details.driver_exit_code or 1
