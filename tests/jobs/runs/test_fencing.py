"""One writer for one output: the newest start wins, everybody else finds out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.runs.fencing import LeaseLostError, take_lease


def test_the_newest_start_takes_over_and_the_older_one_says_so(tmp_path: Path) -> None:
    first = take_lease(str(tmp_path))
    first.check()
    second = take_lease(str(tmp_path))
    assert (first.attempt, second.attempt) == (1, 2)
    with pytest.raises(LeaseLostError, match=r"taken over \(attempt 2, process \d+ on .*attempt 1 stops"):
        first.check()
    second.check()


def test_a_program_renews_its_lease_unless_another_was_faster(tmp_path: Path) -> None:
    first = take_lease(str(tmp_path))
    renewed = first.renewed()
    assert renewed.attempt == 2
    assert first.lost_to()
    renewed.check()
    take_lease(str(tmp_path))
    with pytest.raises(LeaseLostError, match="attempt 3"):
        renewed.renewed()


def test_racing_starts_get_different_attempts(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda _: take_lease(str(tmp_path)), range(24)))
    assert sorted(lease.attempt for lease in leases) == list(range(1, 25))
    assert [lease.attempt for lease in leases if not lease.lost_to()] == [24]
