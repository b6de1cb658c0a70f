"""The streams of micro-batches of a training run: one on each host that has workers, and how many decoders they take.

Every stream delivers its own ranks' micro-batches alone, and its reader and decoders are pinned to its host, so decoded
frames stay in that host's shared memory, and neither the driver nor another host does anything for a micro-batch.
Where hosts lack the CPUs for it, one stream serves all ranks: the same micro-batches, from decoders on any host.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data
import torch
import torch.distributed as dist

from jobs.checkpoints.store import Cursor
from jobs.supervision.hosts import offered_by_host
from jobs.supervision.placement import Demand, place
from jobs.training.agreement import gathered
from jobs.training.config import AUTO, DECODERS_FOR_CPUS, TrainConfig
from jobs.training.job import TrainingJob
from jobs.training.mfu import FLOPS_PER_MULTIPLY_ADD, peak_of
from pipeline.datasets.order import StreamPart
from pipeline.datasets.train import (
    DECODER_CPUS,
    Columns,
    iter_micro_batches,
    stream_cpus,
    stream_execution_options,
    training_stream,
)

logger = logging.getLogger(__name__)

DECODE_SECONDS_PER_VIEW = 0.015  # 16 frames of 224 pixels from prepared clips, one core (measured, PyAV)
# What `decode_actors=auto` expects of a GPU that the driver cannot see: an A100 in bfloat16, and the utilisation that
# the estimates in docs/reproduction.md assume.
ASSUMED_TFLOPS, ASSUMED_UTILISATION = 312.0, 0.35

# What one stream delivers whatever its decoders, measured on two cores (`make bench NAMES=pipeline`).
MICRO_BATCHES_A_SECOND_OF_ONE_STREAM = 39

LEAST_READ_AHEAD_BYTES = 2 * 2**30
MICRO_BATCHES_AHEAD = 4  # one is decoded, one waits for its turn in the order, two are fetched ahead by a worker


@dataclass(frozen=True)
class Streams:
    """Which ranks of a group of workers read a stream together, as the driver has placed them."""

    on_every_host: bool
    """Whether the ranks of each host have one of their own; else one serves all."""

    def ranks(self, rank: int, hosts: Sequence[str]) -> tuple[int, ...]:
        """The ranks that read the stream of ``rank``, itself among them.

        Args:
            hosts: node id of each rank.
        """
        return tuple(other for other, host in enumerate(hosts) if host == hosts[rank] or not self.on_every_host)


def job_stream(job: TrainingJob, cursor: Cursor, part: StreamPart, host: str | None) -> ray.data.Dataset:
    """The micro-batches of some ranks from the cursor to the end of the run, read and decoded on one host or any."""
    config = job.config
    return training_stream(
        job.prepared,
        config.views,
        seed=config.seed,
        micro_batch=config.micro_batch,
        start_position=cursor.position,
        stop_position=job.total_steps * config.global_batch,
        split="train",
        labelled_only=job.phase.labelled_only,
        decode=config.decode.limits,
        concurrency=demand_of(config).decoders_of(len(part.ranks)),
        known_failures=known_failures(cursor.extra),
        part=part,
        options=stream_execution_options(read_ahead_bytes(config, len(part.ranks)), host),
    )


OpenStream = Callable[[TrainingJob, Cursor, StreamPart, str | None], ray.data.Dataset]


class RankStream:
    """The micro-batches of this rank, from the stream that it shares with others.

    The lowest of their ranks opens it, and must keep this object as long as they read. All ranks must make one alike.
    """

    def __init__(
        self, job: TrainingJob, streams: Streams, cursor: Cursor, open_stream: OpenStream = job_stream
    ) -> None:
        rank, host = dist.get_rank(), ray.get_runtime_context().get_node_id()
        ranks = streams.ranks(rank, gathered(host))
        self._splits: list[ray.data.DataIterator] = []
        if rank == ranks[0]:
            part = StreamPart(ranks, dist.get_world_size())
            stream = open_stream(job, cursor, part, host if streams.on_every_host else None)
            self._splits = stream.streaming_split(len(ranks), equal=True)
        opened = gathered(self._splits)
        self._mine = opened[ranks[0]][ranks.index(rank)]

    def __iter__(self) -> Iterator[Columns]:
        """In order: of every global batch numbers rank, rank + workers, ..."""
        return iter_micro_batches(self._mine)


def demand_of(config: TrainConfig, *, gpus: bool = False) -> Demand:
    """What the workers of a run take."""
    return Demand(config.worker_numbers[-1], config.decoders, gpus)


def with_decoders(job: TrainingJob, *, gpus: bool) -> TrainingJob:
    """The job with a number for `decode_actors=auto`, as far as the connected cluster has CPUs for so many."""
    config = job.config
    if config.decode_actors != AUTO:
        return job
    wanted = DECODERS_FOR_CPUS
    if gpus:
        multiply_adds = job.phase.build_step(load_init=False).multiply_adds()
        wanted = decoders_wanted(config.worker_numbers[-1], multiply_adds)
    hosts = offered_by_host()
    fair = fair_decoders(config.worker_numbers[-1], hosts) if gpus else wanted
    possible = decoders_possible(config, min(wanted, fair), hosts, gpus=gpus)
    if gpus and possible < wanted:
        logger.warning("decode_actors=auto: %d are wanted, this run's share of the CPUs is for %d", wanted, possible)
    return replace(job, config=replace(config, decode_actors=max(1, possible)))


def fair_decoders(workers: int, hosts: Mapping[str, Mapping[str, float]]) -> int:
    """Decoders in the share of a cluster's CPUs that so many GPUs are of its GPUs.

    Runs beside each other, as a sweep starts them, would otherwise wait for CPUs that the first has taken.
    """
    cpus, gpus = (sum(resources.get(kind, 0.0) for resources in hosts.values()) for kind in ("CPU", "GPU"))
    share = cpus * min(1.0, workers / max(gpus, 1.0))
    return max(1, int((share - stream_cpus(0)) / DECODER_CPUS))


def decoders_possible(config: TrainConfig, wanted: int, hosts: Mapping[str, Mapping[str, float]], *, gpus: bool) -> int:
    """Decoders, at most those wanted, that there are CPUs for: beside the workers of each host where that is enough.

    Else anywhere: few GPUs' hosts may lack CPUs that others have. But more than feed one stream are of no use there.
    """
    on_hosts = _decoders_on_hosts(config.worker_numbers, wanted, hosts, gpus=gpus)
    cpus = sum(resources.get("CPU", 0.0) for resources in hosts.values())
    beside = stream_cpus(0) + (0 if gpus else config.worker_numbers[0])
    anywhere = min(wanted, int((cpus - beside) / DECODER_CPUS))
    useful = MICRO_BATCHES_A_SECOND_OF_ONE_STREAM * config.micro_batch * DECODE_SECONDS_PER_VIEW
    return on_hosts if on_hosts >= min(anywhere, useful) else anywhere


def _decoders_on_hosts(
    permitted: Sequence[int], wanted: int, hosts: Mapping[str, Mapping[str, float]], *, gpus: bool
) -> int:
    """The most decoders with which as many workers as possible have a stream on every host; 0 where none have."""

    def fit(workers: int, decoders: int) -> bool:
        return place(workers, hosts, Demand(permitted[-1], decoders, gpus)) is not None

    workers = next((number for number in reversed(permitted) if fit(number, 1)), 0)
    return next((decoders for decoders in range(wanted if workers else 0, 0, -1) if fit(workers, decoders)), 0)


def decoders_wanted(workers: int, multiply_adds: int | None) -> int:
    """Decoding actors for so many GPUs.

    Args:
        multiply_adds: of all that a step does with one view; None where they are unknown.
    """
    if not multiply_adds:
        return DECODERS_FOR_CPUS * workers
    return math.ceil(workers * views_per_gpu_second(multiply_adds) * DECODE_SECONDS_PER_VIEW)


def views_per_gpu_second(multiply_adds: int) -> float:
    """Views that one GPU trains on in a second at `ASSUMED_UTILISATION`: the driver's own GPU, or an A100."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    tflops = peak_of(name, "bf16") or ASSUMED_TFLOPS
    return ASSUMED_UTILISATION * tflops * 1e12 / (FLOPS_PER_MULTIPLY_ADD * multiply_adds)


def known_failures(extra: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(epoch, sample id) of the views whose decoding took too long, so that a resumed run makes the same decision."""
    return [(epoch, sample) for epoch, sample in extra.get("timed_out", [])]


def read_ahead_bytes(config: TrainConfig, workers: int) -> int:
    """How much a stream for so many workers may decode ahead: a few micro-batches for every decoder and worker."""
    micro_batch = config.micro_batch * math.prod(config.input_size) * 3
    decoders = demand_of(config).decoders_of(workers)
    return max(LEAST_READ_AHEAD_BYTES, MICRO_BATCHES_AHEAD * (decoders + workers) * micro_batch)
