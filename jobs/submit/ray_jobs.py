"""A submitted job from inside: the GPUs that it waits for, its id, and how it ends itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping

import ray
from ray.autoscaler.sdk import request_resources
from ray.job_submission import JobSubmissionClient

from jobs.core.errors import WorkStoppedError

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
POLL_SECONDS = 2.0


def wait_for_gpus(count: int, seconds: float) -> None:
    """Ask the cluster's autoscaler for GPUs, and return when they have joined; the driver is connected already.

    Raises:
        WorkStoppedError: they did not join in time.
    """
    request_resources(bundles=[{"GPU": 1}] * count)
    deadline = time.monotonic() + seconds
    try:
        while (joined := int(ray.cluster_resources().get("GPU", 0))) < count:
            if time.monotonic() > deadline:
                raise WorkStoppedError(
                    f"gpus={count}: {joined} joined the cluster in {seconds / 60:g} minutes; ask for fewer, give "
                    "gpu_minutes= more, or look at the events of the pending pods"
                )
            time.sleep(POLL_SECONDS)
    finally:
        # The request would hold them until the cluster ends; what has joined stays long enough for the job to begin.
        request_resources(bundles=[])


def submission_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """The id under which this process was submitted; None outside a submitted job."""
    config = json.loads(environment.get(SUBMITTED, "{}"))
    found = config.get("metadata", {}).get("job_submission_id")
    return str(found) if found else None


def stop_this_job(job_id: str, seconds: float) -> None:
    """End this submitted job as STOPPED, which no supervisor retries, instead of FAILED; returns only if that fails."""
    JobSubmissionClient(ray.get_runtime_context().gcs_address).stop_job(job_id)
    time.sleep(seconds)
