"""Discrete simulations of a training run: hosts that wait for each other and for data, and hosts that are lost.

Two scales. `simulated_step` follows each host from step to step: micro-batches are decoded ahead into a small buffer,
arithmetic and decoding vary, and every step ends when the slowest host has. `share_that_counts` follows a run from loss
to loss over weeks, with a step that always takes as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.planning.step_time import StepTime

STEPS, STEPS_TO_SETTLE = 240, 40
STEPS_AHEAD = 2  # that are decoded before they are wanted
GPU_SPREAD, DATA_SPREAD = 0.02, 0.15  # standard deviations of a host's step, as shares; assumed
WEEKS_OF_HOURS = 24 * 7 * 8


@dataclass(frozen=True)
class Recovery:
    """What happens when a host is lost, in seconds."""

    checkpoint_every: float
    checkpoint_seconds: float
    restart_seconds: float
    """Until the next group of workers takes its first step."""
    replacement_seconds: float
    """Until a new host is there."""
    speed_without: float
    """Of the group without the host, as a share; 0: it waits for the new one."""
    announced: bool = False
    """Whether the workers have saved before the host goes."""


def simulated_step(step: StepTime, hosts: int, seed: int = 0) -> float:
    """Seconds of a step when hosts differ by chance; never less than what saturates first."""
    draw = np.random.default_rng(seed)
    arithmetic = step.gpus * (1 + GPU_SPREAD * np.abs(draw.standard_normal((STEPS, hosts))))
    data = step.data * np.exp(DATA_SPREAD * draw.standard_normal((STEPS, hosts)) - DATA_SPREAD**2 / 2)
    ready, ended = np.zeros(hosts), np.zeros(STEPS)
    for number in range(STEPS):
        room = ended[number - STEPS_AHEAD] if number >= STEPS_AHEAD else 0.0  # a decoder waits for a free place
        ready = np.maximum(ready, room) + data[number]
        begun = np.maximum(ready, ended[number - 1] if number else 0.0)
        ended[number] = (begun + arithmetic[number]).max() + step.network
    return float((ended[-1] - ended[STEPS_TO_SETTLE - 1]) / (STEPS - STEPS_TO_SETTLE))


def share_that_counts(recovery: Recovery, every_hours: float = 1.0, seed: int = 0) -> float:
    """Work that was not lost, over what undisturbed hosts would do, when one is lost every so many hours (Poisson)."""
    draw = np.random.default_rng(seed)
    clock, kept, whole_until = 0.0, 0.0, 0.0  # `whole_until`: a replacement is missing before
    while clock < 3600 * WEEKS_OF_HOURS:
        lost_at = clock + draw.exponential(3600 * every_hours)
        done, clock = _work(recovery, clock, lost_at, whole_until)
        kept += done if recovery.announced else _saved(recovery, done)
        whole_until = clock + recovery.replacement_seconds
    return kept / clock


def _work(recovery: Recovery, start: float, end: float, whole_until: float) -> tuple[float, float]:
    """Seconds of whole groups' work from a restart to the next loss, and when that is."""
    if recovery.speed_without == 0:
        begun = max(start, whole_until) + recovery.restart_seconds
        return max(0.0, end - begun), end
    begun = start + recovery.restart_seconds
    joined = max(begun, whole_until)  # the new host joins with a restart of its own, after a checkpoint
    reduced = max(0.0, min(end, joined) - begun) * recovery.speed_without
    return reduced + max(0.0, end - joined - recovery.restart_seconds), end


def _saved(recovery: Recovery, done: float) -> float:
    """What the newest complete checkpoint has of the work since the restart, which began with one."""
    complete = done - recovery.checkpoint_seconds
    return max(0.0, complete // recovery.checkpoint_every * recovery.checkpoint_every)
