"""What all ranks must know alike after a step.

Every decision of the loop that leads to a collective operation, as saving, measuring or stopping, must be the same on
every rank, or some would wait in it without an end. What a rank alone knows (a clock, a failed upload, a request that
reached it) is therefore only a vote, and the votes travel with the loss in the one reduction that a step needs anyway.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from jobs.checkpoints.background_writer import CheckpointWriter
from jobs.supervision.coordinator import CoordinatorClient, StopReason
from jobs.training.micro_batch import MicroBatch

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_NOTICES = 5.0


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
        self._notice_checked_at = time.monotonic()

    def __call__(self, loss: Tensor, consumed: Sequence[MicroBatch], step: int) -> Agreed:
        """What this rank knows after ``step`` steps, reduced over all; all ranks must call it. The loss is a scalar."""
        self._writer.poll()
        stop_request = StopReason.UNSAVED if self._writer.failure else self._coordinator.stop_request()
        failed_views = sum(len(batch.failures) for batch in consumed)
        votes = [stop_request is reason for reason in StopReason]
        # Clocks differ between ranks: the first one decides what depends on time, the others vote 0.
        by_clock = [self._writer.due(step), self._notice_due()] if dist.get_rank() == 0 else [False, False]
        # float64: counts stay exact, and the loss is not rounded again.
        figures = torch.tensor([0, failed_views, *by_clock, *votes], dtype=torch.float64, device=loss.device)
        figures[0] = loss / dist.get_world_size()
        dist.all_reduce(figures)
        mean_loss, failed, checkpoint_due, check_notice, *counted = figures.tolist()
        # The most severe reason that any rank knows of counts for all.
        stop_reason = max(reason for reason in StopReason if counted[reason] or reason is StopReason.NONE)
        if check_notice and self._preempted():
            stop_reason = max(stop_reason, StopReason.REQUESTED)
        if failed == self._global_batch:
            stop_reason = max(stop_reason, StopReason.UNDECODABLE)
        if not math.isfinite(mean_loss):
            stop_reason = StopReason.NOT_FINITE
        return Agreed(mean_loss, int(failed), bool(checkpoint_due), stop_reason)

    def _notice_due(self) -> bool:
        """Reading a pre-emption notice waits for all ranks, so it is done every few seconds only."""
        if time.monotonic() - self._notice_checked_at < SECONDS_BETWEEN_NOTICES:
            return False
        self._notice_checked_at = time.monotonic()
        return True

    def _preempted(self) -> bool:
        notice = ray.train.get_preemption_info()
        if notice is not None and dist.get_rank() == 0:
            logger.warning("a host is about to be pre-empted (ranks %s); saving and stopping", notice.preempted_ranks)
        return notice is not None
