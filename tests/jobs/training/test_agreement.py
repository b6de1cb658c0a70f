"""What the ranks agree on after a step, alone in its process group."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from jobs.supervision.coordinator import StopReason
from jobs.training.agreement import Agreed, Agreement, gathered
from jobs.training.micro_batch import Failure, MicroBatch

NO_FRAMES, LABELS = torch.empty(0, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def agreed(loss: float = 0.5, failed: int = 0, request: StopReason = StopReason.NONE, failure: str = "") -> Agreed:
    """Of one micro-batch of two views, which is the global batch."""
    writer = SimpleNamespace(poll=lambda: None, failure=failure, due=lambda step: step == 4)
    coordinator = SimpleNamespace(stop_request=lambda: request)
    failures = [Failure(0, f"{number}#0", "damaged", "9#0") for number in range(failed)]
    batch = MicroBatch(NO_FRAMES, LABELS, ["1#0", "2#0"], [0, 0], 0, seed=0, step=0, index=0, failures=failures)
    agreement = Agreement(cast(Any, coordinator), cast(Any, writer), global_batch=2)
    return agreement(torch.tensor(loss), [batch], 4)


def test_what_ranks_give_is_gathered_by_rank() -> None:
    assert gathered({"rank": 0}) == [{"rank": 0}]


def test_a_step_like_any_other() -> None:
    assert agreed(failed=1) == Agreed(0.5, 1, checkpoint_due=True, stop_reason=StopReason.NONE)
    assert not agreed(failed=1).step_is_lost


@pytest.mark.parametrize("reason", [StopReason.REQUESTED, StopReason.RESIZED])
def test_a_requested_stop_keeps_the_step(reason: StopReason) -> None:
    assert agreed(request=reason).stop_reason is reason
    assert not agreed(request=reason).step_is_lost


def test_the_most_severe_reason_counts() -> None:
    assert agreed(request=StopReason.REQUESTED, failure="no storage").stop_reason is StopReason.UNSAVED
    assert agreed(request=StopReason.REQUESTED, failed=2).stop_reason is StopReason.UNDECODABLE
    spoiled = agreed(float("nan"), failed=2, request=StopReason.REQUESTED)
    assert spoiled.stop_reason is StopReason.NOT_FINITE
    assert spoiled.step_is_lost
