"""What saturates first, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.core.config import load_config
from jobs.planning.cluster import Cluster, HostConfig, find_gpu
from jobs.planning.memory import ModelSize
from jobs.planning.step_time import StepTime, TrainingWork, step_time
from jobs.planning.unit_costs import UnitCost, UnitCosts
from jobs.training.sharding.costs import Sharding, sent_bytes
from jobs.training.steps.pretrain import PretrainConfig

KEYS = ["demo", "data=d", "output=o", "global_batch=512", "micro_batch=8", "view.repeats=4", "precision=bf16"]
FAST = replace(UnitCosts(), micro_batches_a_second=UnitCost(1e6))


def work(gpus: int, *keys: str, parameters: int = 10**6) -> TrainingWork:
    config = load_config(PretrainConfig, "pretrain", [*KEYS, f"workers={gpus}", *keys])
    return TrainingWork(config, ModelSize(parameters, parameters, parameters, 10**11, 10**9), 3, 500_000.0, 16)


def time_of(gpus: int, *keys: str, costs: UnitCosts = FAST, parameters: int = 10**6, **host: Any) -> StepTime:
    cluster = Cluster(gpus, find_gpu("h100"), HostConfig(**host))
    return step_time(work(gpus, *keys, parameters=parameters), cluster, costs)


def test_arithmetic_by_hand() -> None:
    step = time_of(8)
    assert step.gpus == pytest.approx(512 * 6e11 / (8 * 0.35 * 989e12))
    assert (step.limit, step.seconds) == ("GPUs", step.gpus + step.network)


def test_decoding_by_hand() -> None:
    step = time_of(8, cores=17)
    assert step.decoding == pytest.approx(512 * 0.015 / (17 - 8 - 1))
    assert (step.limit, step.seconds) == ("decoding", step.decoding)
    assert time_of(8, "decode_actors=2").decoding == pytest.approx(512 * 0.015 / 2)


def test_streams_by_hand() -> None:
    step = time_of(16, costs=UnitCosts())
    assert step.streams == pytest.approx(512 / 8 / (2 * 39))
    assert step.limit == "data streams"


@pytest.mark.parametrize(("gpus", "host", "seconds"), [
    (8, {"storage_gbit": 0.8}, 128 * 500_000 / 1e8),
    (8, {"storage_requests": 1.0}, 0.00512),  # one host reads row groups
    (64, {"storage_requests": 10.0}, 12.8),
])  # fmt: skip
def test_storage_by_hand(gpus: int, host: dict[str, float], seconds: float) -> None:
    assert time_of(gpus, **{"storage_gbit": 100.0, **host}).storage == pytest.approx(seconds)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_network_by_hand(stage: int) -> None:
    step = time_of(16, f"zero_stage={stage}", parameters=10**9, network_gbit=80.0)
    sharding = Sharding(10**9, 16, 4, 2, 2, 10**9)
    sent, gathered = sent_bytes(stage, sharding), 15 / 16 * 4e9 * (stage in (1, 2))
    hidden = 2 / 3 * step.gpus / (4 if stage < 2 else 1)
    assert step.network == pytest.approx(gathered / 1e10 + max(0.0, (sent - gathered) / 1e10 - hidden))
    assert step.limit == "network"


def test_one_gpu_sends_nothing() -> None:
    assert time_of(1).network == 0
