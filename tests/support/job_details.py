"""What Ray answers about a submitted job."""

from __future__ import annotations

from ray.job_submission import JobDetails, JobStatus, JobType


def details(status: JobStatus, code: int | None) -> JobDetails:
    """Of the job `night`."""
    return JobDetails(
        type=JobType.SUBMISSION,
        entrypoint="",
        status=status,
        submission_id="night",
        driver_exit_code=code,
    )
