"""Seconds of an optimizer step by what could limit it: arithmetic, network, decoding, data streams, object storage.

All of them work at the same time, so a step takes as long as the slowest. Gradients are reduced while a backward pass
continues; what ZeRO gathers of the weights after the update is waited for. Of several hosts, a ring crosses each host's
network once, so its bytes count once a host, not once a GPU. Latencies of collective operations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jobs.planning.cluster import Cluster
from jobs.planning.memory import ModelSize, planned_sharding
from jobs.planning.unit_costs import UnitCost, UnitCosts
from jobs.training.config import AUTO, TrainConfig
from jobs.training.mfu import FLOPS_PER_MULTIPLY_ADD
from jobs.training.sharding.costs import FLOAT32_BYTES, sent_bytes

BACKWARD_SHARE = 2 / 3  # of a step's arithmetic
FRAMES_OF_A_VIEW = 16  # that the unit costs of decoding are of


@dataclass(frozen=True)
class TrainingWork:
    """What a training run computes, whatever it runs on."""

    config: TrainConfig
    size: ModelSize
    passes: int
    """Forward passes that a step's arithmetic is worth: 3 with a backward pass, 1 for a probe."""
    clip_bytes: float
    """Of a stored clip."""
    frames: int | None
    """Of a view; None of an image."""

    @property
    def flops_a_view(self) -> float:
        """Forward and backward."""
        return float(self.passes * FLOPS_PER_MULTIPLY_ADD * self.size.multiply_adds)

    @property
    def videos_a_step(self) -> float:
        """Videos of a global batch, each read once for all of its repeats."""
        return self.config.global_batch / self.config.view.repeats

    def decode_seconds(self, costs: UnitCosts) -> UnitCost:
        """Seconds of one core for a view."""
        return costs.image_seconds if self.frames is None else of_frames(self.frames, costs.decode_seconds)


class StepTime(NamedTuple):
    """Seconds of a step by what it needs."""

    gpus: float
    network: float
    """That the arithmetic does not hide."""
    decoding: float
    streams: float
    storage: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.gpus + self.network, self.data)

    @property
    def data(self) -> float:
        """Until the step's micro-batches are there."""
        return max(self.decoding, self.streams, self.storage)

    @property
    def limit(self) -> str:
        """What saturates first."""
        parts = {"decoding": self.decoding, "data streams": self.streams, "object storage": self.storage}
        parts |= {"network": self.network} if self.network > self.gpus else {}
        slowest = max(parts, key=lambda name: parts[name])
        return slowest if parts[slowest] > self.gpus + (0 if slowest == "network" else self.network) else "GPUs"


def step_time(work: TrainingWork, cluster: Cluster, costs: UnitCosts) -> StepTime:
    """Of a configuration whose `workers` are the cluster's GPUs."""
    config = work.config
    arithmetic = config.global_batch * work.flops_a_view / cluster.gpus
    gpus = arithmetic / cluster.gpu.sustained(config.precision, costs).value
    streams = cluster.hosts * costs.micro_batches_a_second.value
    return StepTime(
        gpus=gpus,
        network=_exposed_network(work, cluster, costs, gpus),
        decoding=config.global_batch * work.decode_seconds(costs).value / decoders(config, cluster),
        streams=config.global_batch / config.micro_batch / streams,
        storage=max(work.videos_a_step * work.clip_bytes / cluster.storage_rate, _request_seconds(work, cluster)),
    )


def of_frames(frames: int, cost: UnitCost) -> UnitCost:
    """Seconds of a view of so many frames, from those of `FRAMES_OF_A_VIEW`."""
    return UnitCost(cost.value * frames / FRAMES_OF_A_VIEW, cost.where, cost.when)


def decoders(config: TrainConfig, cluster: Cluster) -> int:
    """Cores that decode: those that there are, or as many as `decode_actors` says."""
    return cluster.decode_cores if config.decode_actors == AUTO else min(config.decoders, cluster.decode_cores)


def _exposed_network(work: TrainingWork, cluster: Cluster, costs: UnitCosts, gpu_seconds: float) -> float:
    """What a step waits for the network: gathered weights, and gradients that no backward pass hides."""
    config = work.config
    sharding = planned_sharding(config, work.size)
    rate = cluster.network_rate if cluster.hosts > 1 else costs.link_rate.value
    sent = sent_bytes(config.zero_stage, sharding)
    others = (sharding.workers - 1) / sharding.workers
    gathered = others * FLOAT32_BYTES * sharding.parameters if config.zero_stage in (1, 2) else 0.0
    # Stages 0 and 1 reduce once a step, during the last micro-batch's backward pass; 2 and 3 in each.
    hiding = gpu_seconds * BACKWARD_SHARE / (sharding.micro_batches if config.zero_stage < 2 else 1)
    return gathered / rate + max(0.0, (sent - gathered) / rate - hiding)


def _request_seconds(work: TrainingWork, cluster: Cluster) -> float:
    """Hosts that want less than half of a row group's videos read each by itself; one or two read row groups."""
    return work.videos_a_step / cluster.host.storage_requests if cluster.hosts > 2 else 0.0
