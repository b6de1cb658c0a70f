"""The stream of micro-batches of a training run, and how many decoders it takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.data
import torch

from jobs.checkpoints.store import Cursor
from jobs.training.config import AUTO, DECODERS_FOR_CPUS, TrainConfig
from jobs.training.job import TrainingJob
from jobs.training.mfu import FLOPS_PER_MULTIPLY_ADD, peak_of
from pipeline.datasets.train import DECODER_CPUS, stream_cpus, training_stream

logger = logging.getLogger(__name__)

DECODE_SECONDS_PER_VIEW = 0.015  # 16 frames of 224 pixels from prepared clips, one core (measured, PyAV)
# What `decode_actors=auto` expects of a GPU that the driver cannot see: an A100 in bfloat16, and the utilisation that
# the estimates in docs/reproduction.md assume.
ASSUMED_TFLOPS, ASSUMED_UTILISATION = 312.0, 0.35

LEAST_READ_AHEAD_BYTES = 2 * 2**30
MICRO_BATCHES_AHEAD = 4  # one is decoded, one waits for its turn in the order, two are fetched ahead by a worker


def job_stream(job: TrainingJob, cursor: Cursor) -> ray.data.Dataset:
    """The micro-batches from the cursor to the end of the run."""
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
        concurrency=config.decoders,
        known_failures=known_failures(cursor.extra),
    )


def with_decoders(job: TrainingJob, *, gpus: bool) -> TrainingJob:
    """The job with a number for `decode_actors=auto`, as far as the connected cluster has CPUs for so many."""
    config = job.config
    if config.decode_actors != AUTO:
        return job
    workers, wanted = config.worker_numbers[-1], DECODERS_FOR_CPUS
    if gpus:
        wanted = decoders_wanted(workers, job.phase.build_step(load_init=False).multiply_adds())
    beside = stream_cpus(0) + (0 if gpus else config.worker_numbers[0])
    possible = int((ray.cluster_resources().get("CPU", 0.0) - beside) / DECODER_CPUS)
    if gpus and possible < wanted:
        logger.warning("decode_actors=auto: %d are wanted, the cluster has CPUs for %d", wanted, possible)
    return replace(job, config=replace(config, decode_actors=max(1, min(wanted, possible))))


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
    """How much may be decoded ahead: a few micro-batches for every decoder and worker."""
    micro_batch = config.micro_batch * math.prod(config.input_size) * 3
    return max(LEAST_READ_AHEAD_BYTES, MICRO_BATCHES_AHEAD * (config.decoders + workers) * micro_batch)
