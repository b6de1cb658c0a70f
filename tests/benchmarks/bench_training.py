"""The training loop around the model: how long it waits for data, and what it costs over the bare model step.

Waiting: a model that only sleeps, and decoding that could deliver faster than it asks. Overhead: a masked autoencoder
with DeepSpeed, journal, agreement and tracking, fed with clips decoded before, against the same forward, backward and
optimizer step in a plain loop, which runs before and after. Base at 16×224 stands for what people train; the demo's
model, whose step takes a quarter of a second, shows what the loop costs in itself, with and without ZeRO.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data.extensions import ArrowTensorArray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from rich.console import Console
from torch import Tensor, nn

from hiera_video.optimization import build_optimizer
from jobs.checkpoints.store import Cursor, read_journal
from jobs.core.config import load_config
from jobs.core.ray_cluster import connect
from jobs.prepare import command as prepare
from jobs.runs.fencing import acquire_token
from jobs.runs.mlflow_sender import Run
from jobs.supervision.coordinator import Coordinator
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.training.elastic import train
from jobs.training.job import TrainingJob, plan_job
from jobs.training.loop import train_worker
from jobs.training.micro_batch import MicroBatch, micro_batch_from_columns
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from jobs.training.steps.step import TrainStep
from jobs.training.stream import Streams
from pipeline.datasets.order import StreamPart
from pipeline.datasets.train import stream_execution_options
from pipeline.shards.reader import open_prepared

console = Console()

SECONDS_PER_MICRO_BATCH = 0.5
STEPS_TO_SETTLE = 2
COST_DUE = 0.05
FEW, MANY = 6, 40
MODELS = {
    "loop, Base 16x224, ZeRO 1": (
        FEW,
        ("model=mae_hiera_base_16x224", "global_batch=1", "micro_batch=1"),
    ),
    "loop, demo model, ZeRO 1": (MANY, ()),
    "loop, demo model, ZeRO 0": (MANY, ("zero_stage=0",)),
}


def run(quick: bool) -> dict[str, Any]:
    """Shares of the step time, by name."""
    connect()
    with tempfile.TemporaryDirectory() as folder:
        data = _prepared(Path(folder))
        waiting = _waiting(data, Path(folder) / "sleeps", steps=12 if quick else 40)
        overhead = {}
        for number, (name, (steps, keys)) in enumerate(MODELS.items()):
            if quick and steps == FEW:
                continue  # minutes
            console.print(f"[dim]{name}: {steps} steps, three times ...[/]", highlight=False)
            overhead[name] = _overhead(data, Path(folder) / f"loop-{number}", 6 if quick else steps, keys)
    ray.shutdown()
    return waiting | overhead


class SleepStep(TrainStep):
    """A model whose step takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        super().__init__(nn.Linear(1, 1))
        self._seconds = seconds

    def forward(self, batch: MicroBatch) -> Tensor:
        """A loss, after a while."""
        time.sleep(self._seconds)
        loss: Tensor = self.model(torch.ones(1, 1)).square().mean()
        return loss


@dataclass(frozen=True)
class SleepPhase:
    """How the sleeping model is built."""

    seconds: float
    labelled_only: bool = False

    def build_step(self, *, load_init: bool) -> SleepStep:
        """See `jobs.training.job.Phase`."""
        return SleepStep(self.seconds)


def _prepared(folder: Path) -> str:
    render_motion_videos(folder / "videos", 64, seed=5)
    arguments = [f"source={folder / 'videos'}", f"output={folder / 'set'}", "workers=0"]
    prepare.run(load_config(prepare.PrepareConfig, "prepare", arguments))
    return str(folder / "set")


def _job(data: str, output: Path, phase: Any, *keys: str) -> TrainingJob:
    arguments = ["demo", f"data={data}", f"output={output}", "workers=1", "checkpoint.every_steps=100000",
                 "validation.clips=0", *keys]  # fmt: skip
    config = load_config(PretrainConfig, "pretrain", arguments)
    return plan_job("bench", "bench", config, phase or PretrainPhase(config), open_prepared(data))


def _waiting(data: str, output: Path, steps: int) -> dict[str, Any]:
    keys = (f"steps={steps}", "global_batch=16", "micro_batch=8", "decode_actors=1")
    job = _job(data, output, SleepPhase(SECONDS_PER_MICRO_BATCH), *keys)
    train(job, acquire_token(str(output)), Run(None, "", "", {}))
    lines = _settled(str(output), steps)
    seconds = sum(job.config.global_batch / line["clips_per_second"] for line in lines)
    waited = sum(line["data_wait_seconds"] for line in lines)
    return {
        "sleeping model: step, ms": 1000 * seconds / len(lines),
        "sleeping model: share of the step waited for data": waited / seconds,
        "sleeping model: share of the step that is neither sleep nor waiting": 1
        - (waited + len(lines) * job.micro_batches * SECONDS_PER_MICRO_BATCH) / seconds,
    }


def _overhead(data: str, output: Path, steps: int, keys: tuple[str, ...]) -> dict[str, Any]:
    job = _job(data, output, None, f"steps={steps}", "view.repeats=1", *keys)
    columns = _noise(job)
    token = acquire_token(str(output))
    coordinator = ray.remote(num_cpus=0)(Coordinator).remote()
    ray.get(coordinator.begin.remote(token.generation, 0))
    bare = ray.remote(num_cpus=0)(BareModel).remote()
    rates = [ray.get(bare.step_seconds.remote(job, columns, steps))]
    TorchTrainer(
        train_worker,
        train_loop_config={
            "job": job,
            "coordinator": coordinator,
            "token": token,
            "start_step": 0,
            "run_id": None,
            "streams": Streams(on_every_host=True),
            "open_stream": partial(_repeated, columns),
        },
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=str(output / "ray")),
    ).fit()
    rates.append(ray.get(bare.step_seconds.remote(job, columns, steps)))
    lines = _settled(str(output), steps)
    loop = statistics.median(job.config.global_batch / line["clips_per_second"] for line in lines)
    plain = statistics.mean(rates)
    return {
        "bare step before, ms": 1000 * rates[0],
        "bare step after, ms": 1000 * rates[1],
        "step of the loop, ms": 1000 * loop,
        "cost of the loop over the bare step": loop / plain - 1,
        "passed": loop / plain - 1 < COST_DUE,
    }


class BareModel:
    """Forward, backward, clipping and optimizer on one thread, and nothing else."""

    def step_seconds(self, job: TrainingJob, columns: Mapping[str, Any], steps: int) -> float:
        """The median seconds of a step on the global batch."""
        config = job.config
        torch.set_num_threads(config.threads_per_worker)
        torch.manual_seed(0)
        step = job.phase.build_step(load_init=False)
        optimizer = build_optimizer(step.model, config.optimizer)
        seconds = []
        for number in range(steps):
            started = time.perf_counter()
            for index in range(job.micro_batches):
                batch = micro_batch_from_columns(columns, seed=0, step=number, index=index, device=torch.device("cpu"))
                (step(batch) / job.micro_batches).backward()
            if config.optimizer.clip_gradient_norm:
                torch.nn.utils.clip_grad_norm_(step.model.parameters(), config.optimizer.clip_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[STEPS_TO_SETTLE:])


def _noise(job: TrainingJob) -> dict[str, Any]:
    """One micro-batch as decoding would give it."""
    config = job.config
    generator = np.random.default_rng(0)
    shape = (config.micro_batch, *config.input_size, 3)
    return {
        "video": generator.integers(0, 256, shape, np.uint8),
        "label": np.zeros(config.micro_batch, np.int64),
        "epoch": np.zeros(config.micro_batch, np.int64),
        "position": np.arange(config.micro_batch),
        "sample_id": [f"{number}#0" for number in range(config.micro_batch)],
        "failure": [""] * config.micro_batch,
        "replaced_by": [""] * config.micro_batch,
    }


def _repeated(
    columns: Mapping[str, Any], job: TrainingJob, _cursor: Cursor, _part: StreamPart, host: str | None
) -> ray.data.Dataset:
    """The same micro-batch again and again, as the stream would deliver it, one a block."""
    count = job.total_steps * job.micro_batches
    size = job.config.micro_batch

    def deliver(number: dict[str, Any]) -> pa.Table:
        moved = {**columns, "position": columns["position"] + int(number["item"][0]) * size}
        return pa.table(
            {
                name: ArrowTensorArray.from_numpy(values[None])
                if isinstance(values, np.ndarray)
                else pa.array([values], pa.list_(pa.string()))
                for name, values in moved.items()
            }
        )

    numbers = ray.data.from_items(list(range(count)), override_num_blocks=count)
    numbers.context.execution_options = stream_execution_options(host=host)
    numbers.context.target_max_block_size = 1
    return numbers.map_batches(deliver, batch_size=1, num_cpus=0.25)


def _settled(output: str, steps: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in read_journal(output, steps).splitlines()]
    return lines[STEPS_TO_SETTLE:]
