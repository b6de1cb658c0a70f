"""A job of a Ray cluster as its submitter sees it: submitted or found again, followed to its end, its exit code."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from aiohttp.client_exceptions import ClientError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.core.cli import echo, write
from jobs.core.errors import UserError, WorkStoppedError
from jobs.core.events import is_json, relay
from jobs.core.text import printable_part
from pipeline.storage.errors import first_line

POLL_SECONDS = 1.0
LOG_SECONDS = 10.0  # for the rest of the log, once the job has ended
STOPPED_CODE = 3


def connected(seconds: float) -> JobSubmissionClient:
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
            return JobSubmissionClient(address)
        except ConnectionError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"RAY_ADDRESS={address}: must be the address of a running Ray cluster; it does not answer"
                ) from error
            time.sleep(POLL_SECONDS)
        except RuntimeError as error:
            raise UserError(f"RAY_ADDRESS={address}: {error}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN") from error


def submitted(client: JobSubmissionClient, entrypoint: str, name: str | None) -> str:
    """The id of the job: a new one, or the one of this id that has not failed."""
    if name is None:
        return str(client.submit_job(entrypoint=entrypoint))
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


def followed(client: JobSubmissionClient, job_id: str, seconds: float) -> JobDetails:
    """Print a job's log to its end.

    Raises:
        WorkStoppedError: the cluster has been silent for so long.
    """
    printer = threading.Thread(target=print_log, args=(client, job_id), daemon=True)
    printer.start()
    details = ended(client, job_id, seconds)
    printer.join(LOG_SECONDS)
    return details


def print_log(client: JobSubmissionClient, job_id: str) -> None:
    """Print what a job prints, until it ends or the connection does; `ended` reports the second."""

    async def tail() -> None:
        rest = ""
        async for lines in client.tail_job_logs(job_id):
            rest = passed_on(rest + lines)
        passed_on(f"{rest}\n" if rest else "")

    try:
        asyncio.run(tail())
    except (RuntimeError, ClientError) as error:
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


def ended(client: JobSubmissionClient, job_id: str, seconds: float) -> JobDetails:
    """Wait for a job's end.

    Raises:
        WorkStoppedError: the cluster has been silent for so long.
    """
    heard = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job_id)
            heard = time.monotonic()
            if details.status.is_terminal():
                return details
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() - heard > seconds:
                raise WorkStoppedError(f"{job_id}: the cluster does not answer: {first_line(error)}") from error
        time.sleep(POLL_SECONDS)


def exit_code(details: JobDetails, stopped: bool) -> int:
    """The command's own exit code; 3 when the job was stopped, 1 where no code is known."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED_CODE
    echo(f"submit: {details.submission_id} {details.status.lower()}")
    return STOPPED_CODE if stopped else details.driver_exit_code or 1
