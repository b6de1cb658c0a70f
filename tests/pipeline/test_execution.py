"""The pace of Ray Data's scheduler."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from pipeline.execution import STEP_SECONDS, SteadySteps


@pytest.mark.parametrize("work_seconds", [0.0, 0.5 * STEP_SECONDS, 2 * STEP_SECONDS])
def test_steps_are_no_closer_than_their_due_and_late_ones_do_not_wait(
    work_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, naps, ends = [100.0], list[float](), list[float]()

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    steps = SteadySteps()
    for _ in range(5):
        now[0] += work_seconds
        steps.on_execution_step(None)
        ends.append(now[0])
    assert naps[0] == 0
    assert all(b - a == pytest.approx(max(work_seconds, STEP_SECONDS)) for a, b in pairwise(ends))
