"""The one training loop, for both phases: Ray Train starts the workers, DeepSpeed takes the steps.

Pretraining and fine-tuning hand in a `Phase`: how to build the model and how a micro-batch becomes a loss. All else
is here: the stream of micro-batches, accumulation to the global batch, the learning rate, journal, checkpoints,
resume. What is drawn depends on (seed, purpose, sample or step) and never on a rank, so neither the number of
workers nor a restart changes the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiera_video import (
    build_optimizer,
    learning_rate_at,
    scaled_learning_rate,
    set_learning_rate,
)
from jobs.batch import Batch, batch_from_columns, digest
from jobs.checkpoint import Checkpoint, CheckpointWriter, latest_checkpoint
from jobs.optimizer_state import gather_optimizer_state, gather_weights, scatter_optimizer_state
from jobs.step_log import StepLog
from jobs.stopping import StopPoll
from jobs.tracking import start_run
from jobs.train_config import TrainConfig


class Phase(Protocol):
    """What pretraining and fine-tuning do not share. Instances travel to the workers, so they stay small."""

    @property
    def labelled_only(self) -> bool:
        """Whether the stream leaves unlabelled clips out."""
        ...

    def build_step(self, *, load_init: bool) -> TrainStep:
        """The model, filled from the configured weights if wanted, inside the module that computes its loss.

        Raises:
            ValueError: the configuration or the weights do not fit.
        """
        ...


class TrainStep(nn.Module):
    """A model with its loss; subclasses say what ``forward`` does with a micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a micro-batch: a scalar, the mean over its samples."""
        raise TypeError(f"{type(self).__name__} must say how its loss is computed")


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs; picklable."""

    config: TrainConfig
    phase: Phase
    total_steps: int
    warmup_steps: int
    program: str
    run_key: str

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch."""
        return self.config.global_batch // self.config.micro_batch


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; every rank stops and the checkpoints stay."""


def train_worker(settings: dict[str, Any]) -> None:
    """What every rank runs."""
    job: TrainingJob = settings["job"]
    config = job.config
    torch.set_num_threads(config.threads_per_worker)
    checkpoint = latest_checkpoint(config.output)
    engine = _engine(job, checkpoint)
    log = _step_log(job, checkpoint.step if checkpoint else 0)
    writer = CheckpointWriter(config.output, config.checkpoint)
    stop = StopPoll(settings["stop_flag"])
    peak = scaled_learning_rate(config.optimizer, config.global_batch)
    stopped = False
    batches = _batches(job, log.step, engine.device)

    while log.step < job.total_steps and not stopped:
        learning_rate = learning_rate_at(
            log.step,
            total_steps=job.total_steps,
            warmup_steps=job.warmup_steps,
            peak=peak,
            final=config.schedule.final_learning_rate,
        )
        set_learning_rate(engine.optimizer, learning_rate)
        losses, consumed = [], []
        for _ in range(engine.gradient_accumulation_steps()):
            batch = log.next_batch(batches)
            loss = engine(batch)
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
            consumed.append(batch)

        mean_loss, stopped = _agree(torch.stack(losses).mean(), stop=_rank() == 0 and stop.requested())
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(_tell_non_finite(log.step, consumed))
        log.record(mean_loss, learning_rate, consumed)
        if stopped or log.step == job.total_steps or _decided_by_first_rank(writer.due(log.step)):
            _save(job, engine, writer, log)

    writer.wait(must_succeed=True)
    log.close()
    ray.train.report({"step": log.step, "stopped": stopped and log.step < job.total_steps})


def _engine(job: TrainingJob, checkpoint: Checkpoint | None) -> Any:
    """The DeepSpeed engine, with the checkpoint's weights and optimizer state."""
    config = job.config
    torch.manual_seed(digest(config.seed, "init") % 2**63)
    step = job.phase.build_step(load_init=checkpoint is None)
    if checkpoint:
        step.model.load_state_dict(checkpoint.weights)
    accumulation = job.micro_batches // config.workers
    settings = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_gradient_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,  # SGD: a plain torch optimizer, tested here
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(
        model=step, optimizer=build_optimizer(step.model, config.optimizer), config=settings, dist_init_required=False
    )
    if checkpoint:
        scatter_optimizer_state(engine, checkpoint.optimizer)
    return engine


def _batches(job: TrainingJob, start_step: int, device: torch.device) -> Iterator[Batch]:
    """This rank's micro-batches in order: of every global batch numbers rank, rank + workers, ..."""
    config = job.config
    shard = ray.train.get_dataset_shard("train")
    blocks = shard.iter_batches(batch_size=config.micro_batch, batch_format="numpy", prefetch_batches=2)
    for turn, columns in enumerate(blocks):
        number = turn * config.workers + _rank()
        step, index = start_step + number // job.micro_batches, number % job.micro_batches
        position = step * config.global_batch + index * config.micro_batch
        if int(columns["position"][0]) != position:
            raise RuntimeError(f"the stream delivered position {columns['position'][0]} where {position} was due")
        yield batch_from_columns(columns, seed=config.seed, step=step, index=index, device=device)


def _step_log(job: TrainingJob, start_step: int) -> StepLog:
    config = job.config
    run = None
    if _rank() == 0:
        run = start_run(config.tracking, program=job.program, run_key=job.run_key, output=config.output)
    return StepLog(
        start_step=start_step,
        total_steps=job.total_steps,
        global_batch=config.global_batch,
        every=config.log_every_steps,
        trace=config.trace_samples,
        run=run,
    )


def _agree(loss: Tensor, stop: bool) -> tuple[float, bool]:
    """Mean loss over the ranks and whether any wants to stop, the same on every rank."""
    figures = torch.stack([loss.double() / dist.get_world_size(), torch.full_like(loss, float(stop)).double()])
    dist.all_reduce(figures)
    return float(figures[0]), bool(figures[1] > 0)


def _decided_by_first_rank(due: bool) -> bool:
    """Clocks differ between ranks; the first one decides when a checkpoint is due."""
    decision = [due]
    dist.broadcast_object_list(decision, src=0)
    return decision[0]


def _save(job: TrainingJob, engine: Any, writer: CheckpointWriter, log: StepLog) -> None:
    """All ranks gather, the first one writes in the background."""
    weights, optimizer = gather_weights(engine), gather_optimizer_state(engine)
    if _rank() == 0:
        extra = {"run_key": job.run_key}
        position = log.step * job.config.global_batch
        writer.save(Checkpoint(log.step, position, weights, optimizer, extra), log.take_lines())


def _tell_non_finite(step: int, consumed: list[Batch]) -> str:
    mine = [sample for batch in consumed for sample in batch.sample_ids]
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    samples = ", ".join(sample for rank in everyone for sample in rank)
    return (
        f"step {step}: the loss is not finite; samples of this batch: {samples}; the checkpoints are kept: "
        "lower optimizer.learning_rate or set optimizer.clip_gradient_norm, or look at these clips"
    )


def _rank() -> int:
    return dist.get_rank()
