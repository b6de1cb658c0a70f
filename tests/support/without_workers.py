"""A driver without a cluster, whose workers have reached the last step at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from jobs.checkpoints.store import Checkpoint, write_checkpoint, write_journal
from jobs.training import driver
from tests.support.run_output import journal_lines


def without_workers(monkeypatch: pytest.MonkeyPatch, weights: Callable[[Any], dict[str, torch.Tensor]]) -> None:
    """Until the test ends.

    Args:
        weights: of a job, what its workers have trained.
    """

    def trained(job: Any, token: Any, *_: Any) -> Any:
        lines = "".join(json.dumps(line) + "\n" for line in journal_lines(job.total_steps))
        write_journal(token.output, job.total_steps, token.generation, lines)
        write_checkpoint(token.output, Checkpoint(job.total_steps, 4 * job.total_steps, weights(job), {}))
        return token

    monkeypatch.setattr(driver, "connect", lambda: None)
    monkeypatch.setattr(driver, "has_gpus", lambda: False)
    monkeypatch.setattr(driver, "node_addresses", lambda: {"127.0.0.1"})
    monkeypatch.setattr(driver, "with_decoders", lambda job, gpus: job)
    monkeypatch.setattr(driver, "check_capacity", lambda *_: None)
    monkeypatch.setattr(driver, "node_metrics", lambda _run: nullcontext())
    monkeypatch.setattr(driver, "train", trained)
