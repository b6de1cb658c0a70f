"""When a tagging job stops because too many videos fail."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.core.errors import WorkStoppedError
from jobs.tagging.failure_budget import FailureBudget


def rows(status: str, *videos: int) -> list[dict[str, Any]]:
    return [{"video_id": n, "uri": f"s3://b/{n}.mp4", "status": status, "message": f"why {n}"} for n in videos]


def test_too_many_failures_stop_the_job_and_say_what_to_look_at() -> None:
    budget = FailureBudget(0.25, 40)
    budget.count(rows("ok", *range(20)))
    budget.count(rows("timeout", *range(10, 24)))  # ten of them have a good window
    budget.count(rows("deleted", 24, 25, 26))
    budget.count(rows("unreadable", *range(30, 36)))
    with pytest.raises(WorkStoppedError) as stopped:
        budget.count(rows("unreadable", 36))
    assert "11 of 40 videos have failed (unreadable: 7, timeout: 4)" in str(stopped.value)
    assert "s3://b/30.mp4 (why 30); s3://b/31.mp4 (why 31); s3://b/32.mp4 (why 32); correct" in str(stopped.value)


def test_a_video_with_a_good_window_after_a_bad_one_is_no_failure() -> None:
    budget = FailureBudget(0.0, 20)
    with pytest.raises(WorkStoppedError):
        budget.count(rows("damaged", 1))
    budget = FailureBudget(0.1, 20)
    for video in range(20):
        budget.count(rows("damaged", video))
        budget.count(rows("ok", video))


def test_few_videos_may_all_fail() -> None:
    FailureBudget(0.0, 19).count(rows("damaged", *range(19)))
