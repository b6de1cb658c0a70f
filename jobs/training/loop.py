"""The one training loop, for both phases: Ray Train starts the workers, DeepSpeed takes the steps.

Pretraining and fine-tuning pass a `Phase`: how to build the model and how a micro-batch becomes a loss. All else
is here: the stream of micro-batches, accumulation to the global batch, the learning rate, journal, checkpoints,
resume. What is drawn depends on (seed, purpose, sample or step) and never on a rank, so neither the number of
workers nor a restart changes the run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hiera_video.optimization import learning_rate_at, set_learning_rate
from jobs.checkpoints.background_writer import CheckpointWriter
from jobs.checkpoints.optimizer_state import (
    checkpoint_bytes,
    gather_optimizer_state,
    gather_weights,
    step_was_sound,
)
from jobs.checkpoints.store import Checkpoint, Cursor, read_checkpoint
from jobs.runs.fencing import FencingToken
from jobs.supervision.coordinator import Activity, CoordinatorClient, StopReason
from jobs.training.agreement import Agreed, Agreement
from jobs.training.device_memory import DeviceMemory, does_not_fit, resident_bytes
from jobs.training.job import TrainingJob, WorkerResult
from jobs.training.journal import Journal, gather_in_stream_order
from jobs.training.mfu import peak_tflops
from jobs.training.micro_batch import MicroBatch, micro_batch_from_columns, one_ahead
from jobs.training.sharding.engine import build_engine
from jobs.training.stream import OpenStream, RankStream, Streams, job_stream, known_failures
from jobs.training.validation import Validator

NO_FRAMES = torch.empty(0, dtype=torch.uint8)


class StepTaken(NamedTuple):
    """What one optimizer step of this rank did."""

    learning_rate: float
    loss: Tensor
    """Mean over this rank's micro-batches, a scalar; not a number when the step was not sound."""
    consumed: list[MicroBatch]
    """This rank's micro-batches, without their frames."""


def train_worker(settings: dict[str, Any]) -> None:
    """What every rank runs: from a checkpoint to the last step, or until there is a reason to stop."""
    worker = Worker(**settings)
    while worker.continues:
        taken = worker.step()
        agreed = worker.agree(taken)
        if agreed.step_is_lost:  # the weights may be spoiled: the newest checkpoint is from before this step
            break
        figures = worker.measure()
        worker.record(taken, agreed, figures)
        worker.save(agreed, figures)
    worker.finish()


class Worker:
    """The services of one rank. Methods that involve other ranks are called by all ranks alike, in the same order.

    Args:
        coordinator: handle of the `jobs.supervision.coordinator.Coordinator`.
        start_step: the step whose checkpoint the driver found; the stream begins there.
        run_id: of the MLflow run, to be kept in checkpoints.
        streams: which ranks share a stream.
    """

    def __init__(
        self,
        job: TrainingJob,
        token: FencingToken,
        coordinator: Any,
        start_step: int,
        run_id: str | None,
        streams: Streams,
        open_stream: OpenStream = job_stream,
    ) -> None:
        torch.set_num_threads(job.config.threads_per_worker)
        self._job, self._run_id, self._saves = job, run_id, dist.get_rank() == 0
        self._coordinator = CoordinatorClient(coordinator, dist.get_rank(), token.generation)
        checkpoint = _checkpoint(job.config.output, start_step)
        self._engine = build_engine(job, checkpoint)
        self._journal = _journal(job, checkpoint, self._coordinator, self._engine)
        cursor = Cursor(start_step, checkpoint.position, checkpoint.extra) if checkpoint else Cursor()
        self._stream = RankStream(job, streams, cursor, open_stream)
        self._writer = CheckpointWriter(job.config.checkpoint, token)
        if self._saves:
            self._writer.expect(checkpoint_bytes(self._engine))
        del checkpoint  # on every rank as large as weights and optimizer state together
        self._agreement = Agreement(self._coordinator, self._writer, job.config.global_batch)
        self._validator = Validator(job, self._engine.device, lambda clip: self._mark(Activity.MEASURING, clip))
        batches = _batches(job, self._stream, start_step, self._engine.device)
        self._batches = one_ahead(batches, self._engine.device)
        self._stop_reason, self._failure = StopReason.NONE, ""

    @property
    def continues(self) -> bool:
        """Whether there is a step left, and no reason to stop before it."""
        return self._journal.step < self._job.total_steps and self._stop_reason is StopReason.NONE

    def step(self) -> StepTaken:
        """Take one optimizer step: this rank's micro-batches of the global batch, forward and backward."""
        learning_rate = learning_rate_at(
            self._journal.step,
            total_steps=self._job.total_steps,
            warmup_steps=self._job.warmup_steps,
            peak=self._job.config.peak_learning_rate,
            final=self._job.config.schedule.final_learning_rate,
        )
        set_learning_rate(self._engine.optimizer, learning_rate)
        losses, consumed = list[Tensor](), list[MicroBatch]()
        with self._memory_reported():
            for micro_batch in range(self._engine.gradient_accumulation_steps()):
                self._mark(Activity.WAITING_FOR_DATA, micro_batch)
                batch = self._journal.next_batch(self._batches)
                self._mark(Activity.FORWARD, micro_batch)
                loss = self._engine(batch)
                self._mark(Activity.BACKWARD, micro_batch)
                self._engine.backward(loss)
                self._engine.step()  # takes a step only when the global batch is complete
                losses.append(loss.detach())
                consumed.append(replace(batch, frames=NO_FRAMES))  # the journal needs no pixels, the device its memory
        self._mark(Activity.AGREEING, len(losses))
        # A finite loss may have gradients that are not: neither what they made of the weights nor a lost step is saved.
        sound_loss = torch.where(step_was_sound(self._engine), torch.stack(losses).mean(), torch.nan)
        return StepTaken(learning_rate, sound_loss, consumed)

    def agree(self, taken: StepTaken) -> Agreed:
        """Reduce what the ranks know of the step, and whether it is the last one."""
        agreed = self._agreement(taken.loss, taken.consumed, self._journal.step + 1)
        self._stop_reason = agreed.stop_reason
        self._failure = _failure(agreed.stop_reason, self._journal.step, taken.consumed)
        return agreed

    def measure(self) -> dict[str, Any]:
        """Validation figures, when they are due after this step."""
        step = self._journal.step + 1
        return self._validator(step, gather_weights(self._engine)) if self._validator.due(step) else {}

    def record(self, taken: StepTaken, agreed: Agreed, figures: Mapping[str, Any]) -> None:
        """Close the step in the journal."""
        self._journal.record(
            agreed.loss, taken.learning_rate, taken.consumed, failed_views=agreed.failed_views, validation=figures
        )

    def save(self, agreed: Agreed, figures: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, when one is due, measured, the last, or requested by a stop or a resize."""
        last = self._journal.step == self._job.total_steps
        stops = self._stop_reason in (StopReason.REQUESTED, StopReason.RESIZED)
        if not (agreed.checkpoint_due or figures or last or stops):
            return
        checkpoint = self._gathered(self._validator.metric(figures))
        if self._saves:
            self._mark(Activity.SAVING)
            self._writer.save(checkpoint, self._journal.take_lines())

    def finish(self) -> None:
        """Wait for the last checkpoint to be written, and report how the loop ended."""
        self._mark(Activity.SAVING)
        self._writer.finish()
        stopped = self._stop_reason is StopReason.REQUESTED and self._journal.step < self._job.total_steps
        result = WorkerResult(self._journal.step, stopped, self._failure or self._writer.failure)
        if dist.get_rank() == 0:
            self._coordinator.end(result)
        self._coordinator.close()

    @contextmanager
    def _memory_reported(self) -> Iterator[None]:
        """Report a micro-batch that does not fit, which new workers would not change, before this rank dies of it."""
        resident = resident_bytes(self._engine.device)
        try:
            yield
        except torch.OutOfMemoryError:
            config = self._job.config
            memory = DeviceMemory.of(self._engine.device, resident)
            failure = does_not_fit(config.micro_batch, config.fewest_views, memory)
            self._coordinator.end(WorkerResult(self._journal.step, failure=failure))
            raise

    def _mark(self, activity: Activity, micro_batch: int = 0) -> None:
        self._coordinator.mark(self._journal.step, micro_batch, activity)

    def _gathered(self, metric: float | None) -> Checkpoint:
        """All that the run needs to resume, whole on the rank that saves."""
        weights = gather_weights(self._engine, keep=self._saves)
        optimizer = gather_optimizer_state(self._engine, keep=self._saves)
        step, journal = self._journal.step, self._journal
        extra = {"run_key": self._job.run_key, "mlflow_run_id": self._run_id, "timed_out": list(journal.timed_out)}
        return Checkpoint(step, step * self._job.config.global_batch, weights, optimizer, extra, metric)


def _checkpoint(output: str, step: int) -> Checkpoint | None:
    """The checkpoint that the driver found, and where the stream begins; none for a new run."""
    if step == 0:
        return None
    checkpoint = read_checkpoint(output, step)
    if checkpoint is None:
        raise RuntimeError(f"{output}: the checkpoint of step {step} was damaged since the run was started")
    return checkpoint


def _batches(job: TrainingJob, stream: RankStream, start_step: int, device: torch.device) -> Iterator[MicroBatch]:
    """This rank's micro-batches, each compared with the position where it is due."""
    config, workers = job.config, dist.get_world_size()
    for turn, columns in enumerate(stream):
        number = turn * workers + dist.get_rank()
        step, index = start_step + number // job.micro_batches, number % job.micro_batches
        position = step * config.global_batch + index * config.micro_batch
        if int(columns["position"][0]) != position:
            raise RuntimeError(f"the stream delivered position {columns['position'][0]} where {position} was expected")
        yield micro_batch_from_columns(columns, seed=config.seed, step=step, index=index, device=device)


def _journal(job: TrainingJob, checkpoint: Checkpoint | None, coordinator: CoordinatorClient, engine: Any) -> Journal:
    if dist.get_rank() == 0:
        logging.getLogger().addHandler(coordinator)  # warnings of this process reach the terminal
    return Journal(
        start_step=checkpoint.step if checkpoint else 0,
        total_steps=job.total_steps,
        global_batch=job.config.global_batch,
        every=job.config.log_every_steps,
        trace=job.config.trace_samples,
        coordinator=coordinator,
        multiply_adds=engine.module.multiply_adds(),
        peak=peak_tflops(engine.device, job.config.precision),
        timed_out=known_failures(checkpoint.extra) if checkpoint else (),
    )


def _failure(stop_reason: StopReason, step: int, consumed: Sequence[MicroBatch]) -> str:
    """Why training cannot continue when the batch is the reason, else nothing; all ranks must call it."""
    if stop_reason is StopReason.NOT_FINITE:
        samples = gather_in_stream_order([batch.sample_ids for batch in consumed])
        return (
            f"step {step + 1}: the loss or its gradient is not finite; samples of this batch: {', '.join(samples)}; "
            "checkpoints are kept: lower optimizer.learning_rate, set optimizer.clip_gradient_norm, or check these "
            "clips"
        )
    if stop_reason is StopReason.UNDECODABLE:
        reasons = sorted({failure.reason for batch in consumed for failure in batch.failures})
        return f"step {step + 1}: no view of the global batch could be decoded ({', '.join(reasons)}); look at the data"
    return ""
