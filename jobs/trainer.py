"""The one training loop, for both phases: Ray Train starts the workers, DeepSpeed takes the steps.

Pretraining and fine-tuning hand in a `Phase`: how to build the model and how a micro-batch becomes a loss. All else
is here: the stream of micro-batches, accumulation to the global batch, the learning rate, journal, checkpoints,
resume. What is drawn depends on (seed, purpose, sample or step) and never on a rank, so neither the number of
workers nor a restart changes the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
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
from jobs.run_board import WorkerBoard
from jobs.step_log import StepLog, gather_in_stream_order
from jobs.tracking import start_run
from jobs.train_config import TrainConfig
from pipeline import iter_micro_batches


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
    data_version: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch."""
        return self.config.global_batch // self.config.micro_batch


class Ending(IntEnum):
    """Why the loop ends before the last step; the highest that any rank knows of counts for all."""

    NONE = 0
    REQUESTED = 1
    UNSAVED = 2
    UNDECODABLE = 3
    NOT_FINITE = 4


@dataclass(frozen=True)
class WorkerResult:
    """How a rank's loop ended."""

    step: int
    """Optimizer steps that are saved."""
    failure: str = ""
    """Why training cannot go on, when it cannot; starting the workers anew would not help."""


def train_worker(settings: dict[str, Any]) -> None:
    """What every rank runs: from the newest checkpoint to the last step, or until there is a reason to end."""
    job: TrainingJob = settings["job"]
    config = job.config
    torch.set_num_threads(config.threads_per_worker)
    board = WorkerBoard(settings["board"])
    checkpoint = latest_checkpoint(config.output)
    engine = _engine(job, checkpoint)
    log = _step_log(job, checkpoint, board)
    writer = CheckpointWriter(config.output, config.checkpoint)
    batches = _batches(job, log.step, engine.device)
    ending, consumed = Ending.NONE, list[Batch]()

    while log.step < job.total_steps and ending is Ending.NONE:
        learning_rate = _learning_rate(job, log.step)
        set_learning_rate(engine.optimizer, learning_rate)
        losses, consumed = [], []
        for _ in range(engine.gradient_accumulation_steps()):
            batch = log.next_batch(batches)
            loss = engine(batch)
            engine.backward(loss)
            engine.step()  # takes a step only when the global batch is complete
            losses.append(loss.detach())
            consumed.append(batch)

        mean_loss, failed_views, ending = _agree(torch.stack(losses).mean(), consumed, _wish(board, writer))
        if ending is Ending.NOT_FINITE or failed_views == config.global_batch:
            ending = max(ending, Ending.UNDECODABLE)
            break
        log.record(mean_loss, learning_rate, consumed, failed_views=failed_views)
        if ending is Ending.REQUESTED or log.step == job.total_steps or _first_rank_decides(writer.due(log.step)):
            _save(job, engine, writer, log)

    writer.wait(must_succeed=ending in (Ending.NONE, Ending.REQUESTED))
    log.close()
    result = WorkerResult(log.step, _failure(ending, log.step, consumed, writer))
    if _rank() == 0:
        board.end(asdict(result))
    dist.barrier()  # no rank leaves the others behind


def known_failures(checkpoint: Checkpoint | None) -> list[tuple[int, str]]:
    """(epoch, sample id) of the views whose decoding took too long, so that a resumed run decides alike."""
    return [(epoch, sample) for epoch, sample in checkpoint.extra["timed_out"]] if checkpoint else []


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
    for turn, columns in enumerate(iter_micro_batches(shard)):
        number = turn * config.workers + _rank()
        step, index = start_step + number // job.micro_batches, number % job.micro_batches
        position = step * config.global_batch + index * config.micro_batch
        if int(columns["position"][0]) != position:
            raise RuntimeError(f"the stream delivered position {columns['position'][0]} where {position} was due")
        yield batch_from_columns(columns, seed=config.seed, step=step, index=index, device=device)


def _learning_rate(job: TrainingJob, step: int) -> float:
    return learning_rate_at(
        step,
        total_steps=job.total_steps,
        warmup_steps=job.warmup_steps,
        peak=scaled_learning_rate(job.config.optimizer, job.config.global_batch),
        final=job.config.schedule.final_learning_rate,
    )


def _step_log(job: TrainingJob, checkpoint: Checkpoint | None, board: WorkerBoard) -> StepLog:
    config = job.config
    run = None
    if _rank() == 0:
        logging.getLogger().addHandler(board)
        run = start_run(config.tracking, program=job.program, run_key=job.run_key, output=config.output)
    return StepLog(
        start_step=checkpoint.step if checkpoint else 0,
        total_steps=job.total_steps,
        global_batch=config.global_batch,
        every=config.log_every_steps,
        trace=config.trace_samples,
        run=run,
        board=board,
        timed_out=known_failures(checkpoint),
    )


def _wish(board: WorkerBoard, writer: CheckpointWriter) -> Ending:
    if writer.unsaved_too_long:
        return Ending.UNSAVED
    return Ending.REQUESTED if board.stop_requested() else Ending.NONE


def _agree(loss: Tensor, consumed: Sequence[Batch], wish: Ending) -> tuple[float, int, Ending]:
    """Mean loss, number of failed views and the reason to end, the same on every rank."""
    failed_views = sum(len(batch.failures) for batch in consumed)
    reasons = [float(wish is reason) for reason in Ending]
    figures = torch.tensor([0.0, failed_views, *reasons], dtype=torch.float64, device=loss.device)
    figures[0] = loss / dist.get_world_size()
    dist.all_reduce(figures)
    mean_loss, failed, *votes = figures.tolist()
    if not math.isfinite(mean_loss):
        return mean_loss, int(failed), Ending.NOT_FINITE
    return mean_loss, int(failed), max(reason for reason in Ending if votes[reason] or reason is Ending.NONE)


def _first_rank_decides(due: bool) -> bool:
    """Clocks differ between ranks; the first one decides when a checkpoint is due."""
    decision = [due]
    dist.broadcast_object_list(decision, src=0)
    return decision[0]


def _save(job: TrainingJob, engine: Any, writer: CheckpointWriter, log: StepLog) -> None:
    """All ranks gather, the first one writes in the background."""
    weights, optimizer = gather_weights(engine), gather_optimizer_state(engine)
    if _rank() == 0:
        extra = {"run_key": job.run_key, "timed_out": log.timed_out}
        position = log.step * job.config.global_batch
        writer.save(Checkpoint(log.step, position, weights, optimizer, extra), log.take_lines())


def _failure(ending: Ending, step: int, consumed: Sequence[Batch], writer: CheckpointWriter) -> str:
    """What to tell the person, when training cannot go on; all ranks must call it."""
    if ending is Ending.NOT_FINITE:
        samples = gather_in_stream_order([batch.sample_ids for batch in consumed])
        return (
            f"step {step + 1}: the loss is not finite; samples of this batch: {', '.join(samples)}; checkpoints are "
            "kept: lower optimizer.learning_rate, set optimizer.clip_gradient_norm, or look at these clips"
        )
    if ending is Ending.UNDECODABLE:
        reasons = sorted({failure.reason for batch in consumed for failure in batch.failures})
        return f"step {step + 1}: no view of the global batch could be decoded ({', '.join(reasons)}); look at the data"
    return writer.unsaved_too_long if ending is Ending.UNSAVED else ""


def _rank() -> int:
    return dist.get_rank()
