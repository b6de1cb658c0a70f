"""The simulations against cases that can be told by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.planning.simulation import Recovery, share_that_counts, simulated_step
from jobs.planning.step_time import StepTime

STEP = StepTime(gpus=1.0, network=0.2, decoding=0.3, streams=0.1, storage=0.1)
RECOVERY = Recovery(checkpoint_every=60, checkpoint_seconds=10, restart_seconds=90, replacement_seconds=600,
                    speed_without=0.5)  # fmt: skip


def test_a_step_is_as_long_as_what_saturates_and_chance_costs_more_on_more_hosts() -> None:
    few, many = simulated_step(STEP, 1), simulated_step(STEP, 128)
    assert STEP.seconds < few < many < 1.1 * STEP.seconds
    waiting = simulated_step(StepTime(0.1, 0.0, 2.0, 0.0, 0.0), 1)
    assert waiting == pytest.approx(2.0, rel=0.05)


def test_hosts_that_never_leave_lose_nothing() -> None:
    whole = replace(RECOVERY, restart_seconds=0.0, replacement_seconds=0.0, checkpoint_seconds=0.0, announced=True)
    assert share_that_counts(whole) == pytest.approx(1.0)


def test_losses_cost_what_they_cost_by_hand() -> None:
    """Announced, waiting for a new host: of an hour on average, 690 s pass before work goes on (exponential losses)."""
    waits = replace(RECOVERY, speed_without=0.0, announced=True)
    assert share_that_counts(waits) == pytest.approx(2.718281828 ** (-690 / 3600), abs=0.02)


@pytest.mark.parametrize(
    "worse",
    [
        replace(RECOVERY, speed_without=0.0), replace(RECOVERY, checkpoint_every=1800),
        replace(RECOVERY, restart_seconds=400),
    ],
)  # fmt: skip
def test_what_is_worse_counts_less(worse: Recovery) -> None:
    better = share_that_counts(RECOVERY)
    assert share_that_counts(worse) < better < share_that_counts(replace(RECOVERY, announced=True)) < 1
    assert share_that_counts(RECOVERY, every_hours=10) > better
