"""Actors that are killed in the middle of a stream."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from pipeline.datasets import train as stages
from pipeline.datasets.train import iter_micro_batches
from pipeline.shards.reader import PreparedSet
from tests.pipeline.datasets.test_train import stream

pytestmark = pytest.mark.faults


class _DiesOnce(stages.DecodeMicroBatches):
    """An actor that is killed in the middle of its work, the first time."""

    def __call__(self, table: pa.Table) -> pa.Table:
        marker = Path(tempfile.gettempdir()) / f"died-{ray.get_runtime_context().get_job_id()}-{os.getppid()}"
        result = super().__call__(table)
        if not marker.exists() and 8 in result["position"].to_numpy()[0]:
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def test_a_killed_actor_costs_nothing(
    prepared: PreparedSet,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = [batch["sample_id"] for batch in iter_micro_batches(stream(prepared, 0, 40))]
    monkeypatch.setattr(stages, "DecodeMicroBatches", _DiesOnce)
    assert [batch["sample_id"] for batch in iter_micro_batches(stream(prepared, 0, 40))] == calm
