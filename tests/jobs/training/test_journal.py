"""The journal of steps: which failed views a resumed run must be told of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.training.journal import Journal
from jobs.training.micro_batch import MicroBatch, micro_batch_from_columns


class CoordinatorClient:
    """Takes what a log posts."""

    def post(self, _line: str, _steps: int, figures: dict[str, Any]) -> None:
        self.figures = figures


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def failing(*reasons: str) -> MicroBatch:
    """A micro-batch with a view that decodes and then one for each reason."""
    views = 1 + len(reasons)
    columns = {
        "video": np.zeros((views, 1, 4, 4, 3), np.uint8),
        "label": np.zeros(views, np.int64),
        "epoch": np.full(views, 3),
        "position": np.arange(views),
        "sample_id": [f"{number}#0" for number in range(views)],
        "failure": ["", *reasons],
        "replaced_by": ["", *("0#0" for _ in reasons)],
    }
    return micro_batch_from_columns(columns, seed=0, step=0, index=0, device=torch.device("cpu"))


def test_failures_that_may_not_come_again_are_remembered_until_their_pass_ends(alone: None) -> None:
    coordinator = CoordinatorClient()
    log = Journal(
        start_step=0,
        total_steps=2,
        global_batch=6,
        every=1,
        trace=False,
        coordinator=cast(Any, coordinator),
        timed_out=[(2, "8#0"), (3, "9#0")],
    )
    batch = failing("damaged", "timeout", "crashed", "out_of_memory", "missing")
    log.record(1.0, 0.1, [batch], failed_views=5)
    assert log.timed_out == [(3, "9#0"), (3, "2#0"), (3, "3#0"), (3, "4#0"), (3, "5#0")]
    assert len(coordinator.figures["failures"]) == 5
