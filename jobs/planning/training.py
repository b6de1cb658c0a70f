"""The plan of `pretrain` and `finetune`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from hiera_video.models.config import EncoderConfig
from jobs.planning.cluster import Cluster
from jobs.planning.figures import ARITHMETIC, Figure, basis_of, figure
from jobs.planning.memory import GIB, checkpoint_bytes, planned_sharding, trained_size, worker_bytes
from jobs.planning.simulation import Recovery, share_that_counts
from jobs.planning.step_time import StepTime, TrainingWork, decoders, step_time
from jobs.planning.unit_costs import Collection, UnitCost, UnitCosts
from jobs.training.config import TrainConfig

# docs/data.md, "The index, and large sets"
INDEX_BYTES_A_CLIP, BYTES_A_ROW_GROUP, EPOCH_BYTES_A_ROW_GROUP, RECORD_BYTES_A_SHARD = 4, 33, 60, 240
CLIPS_A_SHARD = 256
ROW_GROUP_BYTES = 4 * 2**20


@dataclass(frozen=True)
class TrainingPlan:
    """A training run on a cluster."""

    work: TrainingWork
    cluster: Cluster
    collection: Collection
    costs: UnitCosts

    @property
    def steps(self) -> int:
        """Optimizer steps, as `jobs.training.job.plan_job` counts them."""
        config = self.work.config
        return config.steps or max(1, math.ceil((config.epochs or 0) * self.collection.clips / config.global_batch))

    @functools.cached_property
    def step(self) -> StepTime:
        """Seconds of one."""
        return step_time(self.work, self.cluster, self.costs)

    @property
    def hours(self) -> float:
        """Of all steps, without start-up, validation and lost hosts."""
        return self.steps * self.step.seconds / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Of one."""
        return checkpoint_bytes(planned_sharding(self.work.config, self.work.size))

    @property
    def checkpoint_seconds(self) -> float:
        """To write one; the first worker writes alone."""
        return self.checkpoint_bytes / self.costs.write_rate.value

    @property
    def read_seconds(self) -> float:
        """To read one at a restart: every worker reads the whole."""
        return self.cluster.gpus * self.checkpoint_bytes / self.cluster.storage_rate

    @property
    def recovery(self) -> Recovery:
        """What the loss of a host costs, without a notice."""
        config, step = self.work.config, self.step.seconds
        return Recovery(
            checkpoint_every=min(config.checkpoint.every_steps * step, 60 * config.checkpoint.every_minutes),
            checkpoint_seconds=self.checkpoint_seconds,
            restart_seconds=self.costs.restart_seconds.value + self.read_seconds,
            replacement_seconds=self.costs.replacement_seconds.value,
            speed_without=next_workers(config, self.cluster.gpus - self.cluster.host.gpus) / self.cluster.gpus,
        )

    @property
    def speed_costs(self) -> tuple[UnitCost, ...]:
        """What the hours rest on."""
        sustained = self.cluster.gpu.sustained(self.work.config.precision, self.costs)
        limit = self.step.limit
        also = {"decoding": self.work.decode_seconds(self.costs), "data streams": self.costs.micro_batches_a_second}
        return (also[limit],) if limit in also else (sustained,)

    def figures(self) -> Iterator[Figure]:
        """All lines."""
        yield from self._time()
        yield from self._data()
        yield from self._memory()
        yield from self._checkpoints()
        yield from self._index()

    def _time(self) -> Iterator[Figure]:
        step, costs, rate = self.step, self.speed_costs, self.work.config.global_batch / self.step.seconds
        yield Figure("clips", self.collection.clips, "", self.collection.basis)
        yield Figure("optimizer steps", self.steps, "", self.collection.basis)
        yield figure("seconds a step", step.seconds, "s", *costs)
        yield Figure("what saturates first", step.limit, "", basis_of(*costs))
        yield figure("views a second", rate, "1/s", *costs)
        yield figure("hours", self.hours, "h", *costs)
        yield figure("GPU-hours", self.hours * self.cluster.gpus, "h", *costs)
        yield figure("core-hours", self.hours * self.cluster.cores, "h", *costs)
        yield figure("share of the time that counts, a host lost every hour", share_that_counts(self.recovery), "",
                     self.costs.restart_seconds, *costs)  # fmt: skip

    def _data(self) -> Iterator[Figure]:
        step, work = self.step, self.work
        rate = work.config.global_batch / step.seconds
        decode, videos = work.decode_seconds(self.costs), work.videos_a_step / step.seconds
        yield figure("cores that decode", math.ceil(rate * decode.value), "cores", decode, *self.speed_costs)
        yield Figure("cores there are for it", decoders(work.config, self.cluster), "cores", ARITHMETIC)
        yield figure("data streams needed", math.ceil(step.streams * self.cluster.hosts / step.seconds), "",
                     self.costs.micro_batches_a_second, *self.speed_costs)  # fmt: skip
        yield Figure("data streams, one a host", self.cluster.hosts)
        yield figure(
            "read from storage", videos * work.clip_bytes / 1e6, "MB/s", self.collection.rate, *self.speed_costs
        )
        yield figure("requests to storage", videos, "1/s", *self.speed_costs)
        yield Figure("network, waited for in a step", step.network, "s", "assumed")

    def _memory(self) -> Iterator[Figure]:
        config, size = self.work.config, self.work.size
        sharding = planned_sharding(config, size)
        for stage, parts in worker_bytes(config, sharding, size.activation_bytes).items():
            chosen, gib = " (chosen)" * (stage == config.zero_stage), sum(parts.values()) / GIB
            fits = "" if gib < self.cluster.gpu.memory_gib else f": more than {self.cluster.gpu.memory_gib:g}"
            yield Figure(f"memory of a worker, ZeRO {stage}{chosen}{fits}", gib, "GiB")

    def _checkpoints(self) -> Iterator[Figure]:
        config, size = self.work.config, self.checkpoint_bytes
        kept = config.checkpoint.keep + config.checkpoint.keep_best
        needed, notice = self.checkpoint_seconds + self.step.seconds, self.cluster.host.notice_seconds
        verdict = "fits into" if needed <= notice else "longer than"
        yield Figure("a checkpoint", size / GIB, "GiB")
        yield Figure("checkpoints written", math.ceil(self.steps / config.checkpoint.every_steps), "",
                     self.collection.basis)  # fmt: skip
        yield figure(f"a step and a checkpoint, {verdict} the notice of {notice:g} s", needed, "s",
                     self.costs.write_rate, *self.speed_costs)  # fmt: skip
        yield Figure("reading it at a restart, all workers", self.read_seconds, "s", "assumed")
        yield Figure("bytes kept: checkpoints", kept * size / GIB, "GiB")
        yield Figure("bytes kept: prepared set", self.collection.clips * self.work.clip_bytes / GIB, "GiB",
                     self.collection.rate.basis)  # fmt: skip

    def _index(self) -> Iterator[Figure]:
        clips = self.collection.clips
        groups = clips * self.work.clip_bytes / max(ROW_GROUP_BYTES, self.work.clip_bytes)
        yield Figure("index, mapped on every host", (INDEX_BYTES_A_CLIP * clips + 8 * groups) / GIB, "GiB")
        yield Figure("index, while a reader draws an epoch's order", EPOCH_BYTES_A_ROW_GROUP * groups / GIB, "GiB")
        yield Figure("record of the set", RECORD_BYTES_A_SHARD * clips / CLIPS_A_SHARD / GIB, "GiB")


def next_workers(config: TrainConfig, gpus: int) -> int:
    """The most workers that so many GPUs and the global batch permit, as `workers=[1,most]` would take; 0 for none."""
    micro_batches = config.global_batch // config.micro_batch
    return next((workers for workers in range(max(gpus, 0), 0, -1) if micro_batches % workers == 0), 0)


def plan_training(
    config: TrainConfig, model: EncoderConfig, passes: int, collection: Collection, cluster: Cluster, costs: UnitCosts
) -> TrainingPlan:
    """The plan of a configuration whose `workers` are the cluster's GPUs."""
    size = trained_size(config, model)
    clip_bytes = collection.stored_bytes(costs, is_video=model.is_video)
    work = TrainingWork(config, size, passes, clip_bytes, model.input_size[0] if model.is_video else None)
    return TrainingPlan(work, cluster, collection, costs)
