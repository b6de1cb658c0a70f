"""The id of a submitted job. `tests/infra/test_job_submit.py` submits real ones."""

from __future__ import annotations

import json

from jobs.submit.ray_jobs import submission_id


def test_the_submission_id_is_that_of_rays_environment() -> None:
    config = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}})
    assert submission_id({"RAY_JOB_CONFIG_JSON_ENV_VAR": config}) == "raysubmit_1"
    assert submission_id({}) is None
