"""What all ranks must know alike after a step.

Every decision of the loop that leads to a collective operation, as saving, measuring or stopping, must be the same on
every rank, or some would wait in it without an end. What a rank alone knows (a clock, a failed upload, a request that
reached it) is therefore only a vote, and the votes travel with the loss in the one reduction that a step needs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.checkpoints.background_writer import CheckpointWriter
from jobs.supervision.coordinator import CoordinatorClient, StopReason
from jobs.training.micro_batch import MicroBatch

T = TypeVar("T")


class Agreed(NamedTuple):
    """The same on every rank."""

    loss: float
    """Mean over the global batch; not finite when a gradient was not."""
    failed_views: int
    """Views of the global batch that could not be decoded."""
    checkpoint_due: bool
    stop_reason: StopReason

    @property
    def step_is_lost(self) -> bool:
        """Whether the step has spoiled the weights, or learned from nothing: it is neither recorded nor saved."""
        return self.stop_reason >= StopReason.UNDECODABLE


class Agreement:
    """One reduction a step: loss, failures, checkpoints, stop reasons."""

    def __init__(self, coordinator: CoordinatorClient, writer: CheckpointWriter, global_batch: int) -> None:
        self._coordinator, self._writer, self._global_batch = coordinator, writer, global_batch

    def __call__(self, loss: Tensor, consumed: Sequence[MicroBatch], step: int) -> Agreed:
        """What this rank knows after ``step`` steps, reduced over all; all ranks must call it. The loss is a scalar."""
        self._writer.poll()
        stop_request = StopReason.UNSAVED if self._writer.failure else self._coordinator.stop_request()
        failed_views = sum(len(batch.failures) for batch in consumed)
        votes = [stop_request is reason for reason in StopReason]
        # Clocks differ between ranks: the first one decides what depends on time, the others vote 0.
        due = dist.get_rank() == 0 and self._writer.due(step)
        # float64: counts stay exact, and the loss is not rounded again.
        figures = torch.tensor([0, failed_views, due, *votes], dtype=torch.float64, device=loss.device)
        figures[0] = loss / dist.get_world_size()
        dist.all_reduce(figures)
        mean_loss, failed, checkpoint_due, *counted = figures.tolist()
        # The most severe reason that any rank knows of counts for all.
        stop_reason = max(reason for reason in StopReason if counted[reason] or reason is StopReason.NONE)
        if failed == self._global_batch:
            stop_reason = max(stop_reason, StopReason.UNDECODABLE)
        if not math.isfinite(mean_loss):
            stop_reason = StopReason.NOT_FINITE
        return Agreed(mean_loss, int(failed), bool(checkpoint_due), stop_reason)


def gathered(mine: T) -> list[T]:
    """What every rank gives, by rank; all ranks must call it. Pickled and sent by the host, so not for every step."""
    everyone: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
