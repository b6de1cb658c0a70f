"""What a user reads whose micro-batch does not fit. The GPU is made up: what it measures are arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.training.device_memory import GIB, DeviceMemory, does_not_fit, next_size, resident_bytes
from jobs.training.job import WorkerResult
from jobs.training.loop import Worker

A100 = DeviceMemory(total=80 * GIB, resident=8 * GIB, peak=79 * GIB)


@pytest.mark.parametrize(
    ("micro_batch", "fewest", "memory", "size"),
    [
        (16, 1, A100, 8),
        (24, 1, A100, 12),
        (7, 1, A100, 1),
        (2, 2, A100, None),  # mixing needs two
        (1, 1, A100, None),
        (8, 1, DeviceMemory(total=10 * GIB, resident=10 * GIB, peak=10 * GIB), None),
    ],
)
def test_the_next_size_keeps_the_numbers_of_workers(
    micro_batch: int, fewest: int, memory: DeviceMemory, size: int | None
) -> None:
    assert next_size(micro_batch, fewest, memory) == size


def test_the_message_has_what_was_measured_and_the_remedy() -> None:
    message = does_not_fit(16, 1, A100)
    assert message.startswith(
        "micro_batch=16: does not fit into a GPU of 80.0 GiB (allocated at most 79.0 GiB, 8.0 GiB"
    )
    assert "use micro_batch=8 and another output" in message
    assert "use activation_checkpointing=true or zero_stage=3" in does_not_fit(1, 1, A100)


def test_without_a_gpu_nothing_is_measured() -> None:
    assert resident_bytes(torch.device("cpu")) == 0


def test_a_rank_without_memory_reports_it_before_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceMemory, "of", lambda *_: A100)
    results: list[WorkerResult] = []
    worker: Any = object.__new__(Worker)
    worker._engine = SimpleNamespace(device=torch.device("cpu"))
    worker._job = SimpleNamespace(config=SimpleNamespace(micro_batch=16, fewest_views=1))
    worker._journal, worker._coordinator = SimpleNamespace(step=3), SimpleNamespace(end=results.append)
    with pytest.raises(torch.OutOfMemoryError), worker._memory_reported():
        raise torch.OutOfMemoryError
    assert [(result.step, result.stopped) for result in results] == [(3, False)]
    assert "use micro_batch=8" in results[0].failure
