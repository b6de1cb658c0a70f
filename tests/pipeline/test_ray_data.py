"""The pace of Ray Data's scheduler, and its budget."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from ray.data import ExecutionResources

from pipeline.ray_data import STEP_SECONDS, KeptBudget, SteadySteps


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


def test_what_was_granted_once_is_kept() -> None:
    grants = [
        ExecutionResources(cpu=2, object_store_memory=10),
        ExecutionResources.zero(),
        ExecutionResources(cpu=1, object_store_memory=30),
    ]
    manager = SimpleNamespace(_get_total_resources=lambda: grants.pop(0))
    KeptBudget().before_execution_starts(SimpleNamespace(_resource_manager=manager))
    seen = [manager._get_total_resources() for _ in range(3)]
    assert [(there.cpu, there.object_store_memory) for there in seen] == [(2, 10), (2, 10), (2, 30)]
