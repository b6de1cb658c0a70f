"""When a tagging job stops because too many videos fail."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from jobs.core.errors import TooManyFailuresError
from jobs.tagging.failure_budget import FailureBudget
from jobs.tagging.stage import FinishedTask
from pipeline.storage.blame import Blame
from pipeline.storage.delta import DataFile

FILE = DataFile("a.parquet", 1, "{}")


def task(*failed: tuple[str, int], blame: Blame = Blame.OBJECT) -> FinishedTask:
    """One with these failures: reason and number of the video."""
    examples = [(reason, f"s3://b/{n}.mp4", f"why {n}") for reason, n in failed[:3]]
    failures = dict(Counter(reason for reason, _ in failed))
    return FinishedTask(0, FILE, FILE, 16, {"ok": 4}, failures, {str(blame): failures}, examples)


def test_too_many_failures_stop_the_job_and_say_what_to_look_at() -> None:
    budget = FailureBudget(0.25, 40)
    budget.count(task())
    budget.count(task(*(("damaged", n) for n in range(20, 24))))
    budget.count(task(*(("disk_full", n) for n in range(4)), blame=Blame.SURROUNDINGS))
    budget.count(task(*(("unreadable", n) for n in range(30, 36)), blame=Blame.SURROUNDINGS))
    with pytest.raises(TooManyFailuresError) as stopped:
        budget.count(task(("unreadable", 36), blame=Blame.SURROUNDINGS))
    assert "11 of 40 videos have failed (unreadable: 7, disk_full: 4)" in str(stopped.value)
    assert "s3://b/30.mp4 (why 30); s3://b/31.mp4 (why 31); s3://b/32.mp4 (why 32); correct" in str(stopped.value)


def test_few_videos_may_all_fail() -> None:
    FailureBudget(0.0, 19).count(task(*(("unreadable", n) for n in range(19)), blame=Blame.SURROUNDINGS))


DECODED = ["not_a_video", "damaged", "max_bytes", "crashed", "timeout", "out_of_memory"]


@pytest.mark.parametrize(
    ("reason", "blame"),
    [
        *((reason, Blame.OBJECT) for reason in [*DECODED, "missing", "unreadable"]),
        *((reason, Blame.EITHER) for reason in ["missing", "forbidden", "unreadable"]),
    ],
)
def test_junk_beside_good_videos_stops_nothing(reason: str, blame: Blame, capsys: pytest.CaptureFixture[str]) -> None:
    """Uploading 21 broken files, dangling links or archived objects beside 20 good ones would switch tagging off."""
    budget = FailureBudget(0.5, 41)
    budget.count(replace(task(*((reason, n) for n in range(20, 41)), blame=blame), num_videos=41))
    budget.warn()
    assert f"21 of 41 videos have failed ({reason}: 21)" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["missing", "unreadable", "disk_full"])
def test_the_surroundings_stop_the_job(reason: str) -> None:
    failed = task(*((reason, n) for n in range(20, 41)), blame=Blame.SURROUNDINGS)
    with pytest.raises(TooManyFailuresError, match=f"{reason}: 21"):
        FailureBudget(0.5, 41).count(replace(failed, num_videos=41))


@pytest.mark.parametrize("reason", ["missing", "forbidden", "unreadable"])
def test_access_that_is_refused_everywhere_stops_the_job(reason: str) -> None:
    """Credentials that may read nothing: no object's matter."""
    failed = task(*((reason, n) for n in range(21)), blame=Blame.EITHER)
    with pytest.raises(TooManyFailuresError, match=f"{reason}: 21"):
        FailureBudget(0.5, 41).count(replace(failed, num_videos=21))


def test_a_decoder_that_decodes_nothing_stops_the_job() -> None:
    """A machine where every child dies is no matter of the content."""
    with pytest.raises(TooManyFailuresError, match="crashed: 21"):
        FailureBudget(0.5, 41).count(task(*(("crashed", n) for n in range(21))))
    FailureBudget(0.5, 41).count(task(*(("not_a_video", n) for n in range(41))))
