"""The one training loop, for both phases: Ray Train starts the workers, DeepSpeed takes the steps.

Pretraining and fine-tuning hand in a `Phase`: how to build the model and how a micro-batch becomes a loss. All else
is here: the stream of micro-batches, accumulation to the global batch, the learning rate, journal, checkpoints,
resume. What is drawn depends on (seed, purpose, sample or step) and never on a rank, so neither the number of
workers nor a restart changes the run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiera_video.optimization import build_optimizer, learning_rate_at, scaled_learning_rate, set_learning_rate
from jobs.checkpoints.background_writer import CheckpointWriter
from jobs.checkpoints.optimizer_state import (
    gather_optimizer_state,
    gather_weights,
    scatter_optimizer_state,
    step_was_sound,
)
from jobs.checkpoints.store import Checkpoint, read_checkpoint
from jobs.runs.fencing import FencingToken
from jobs.supervision.coordinator import Activity, CoordinatorClient, StopReason
from jobs.training.config import TrainConfig
from jobs.training.journal import Journal, gather_in_stream_order
from jobs.training.mfu import peak_tflops
from jobs.training.micro_batch import MicroBatch, micro_batch_from_columns, one_ahead
from jobs.training.validation import Validator
from pipeline.datasets.train import iter_micro_batches
from pipeline.seeds import derive_seed
from pipeline.shards.reader import open_prepared

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_NOTICES = 5.0


class Phase(Protocol):
    """What pretraining and fine-tuning do not share. Instances travel to the workers, so they stay small."""

    @property
    def config(self) -> TrainConfig:
        """What it was made of, with an `init` that workers can read."""
        ...

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

    def forward(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch: a scalar, the mean over its samples."""
        raise TypeError(f"{type(self).__name__} must say how its loss is computed")

    def measure(self, batch: MicroBatch) -> Mapping[str, float]:
        """Figures of one held-out view, without any draw that depends on the step; none: nothing is measured."""
        return {}

    def multiply_adds(self) -> int | None:
        """Of a step, forward and backward, over one view, as the model's shapes ask for; None: unknown."""
        return None

    def embed(self, batch: MicroBatch) -> Tensor | None:
        """Features ``[B, C]`` of the encoder, for a nearest-neighbour probe; None: no probe."""
        return None

    def picture(self, frames: Tensor, path: Path) -> bool:
        """Draw what the model makes of ``[B, T, H, W, 3]`` into a PNG; False: there is nothing to draw."""
        return False


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs; picklable."""

    config: TrainConfig
    phase: Phase
    total_steps: int
    warmup_steps: int
    command: str
    run_key: str
    data_version: int
    steps_between_measurements: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch."""
        return self.config.global_batch // self.config.micro_batch


@dataclass(frozen=True)
class WorkerResult:
    """How a rank's loop ended."""

    step: int
    """Optimizer steps that are saved."""
    stopped: bool = False
    """Whether it was asked to stop (SIGTERM, pre-emption)."""
    failure: str = ""
    """Why training cannot go on, when it cannot; starting the workers anew would not help."""


def train_worker(settings: dict[str, Any]) -> None:
    """What every rank runs: from a checkpoint to the last step, or until there is a reason to end."""
    job: TrainingJob = settings["job"]
    token: FencingToken = settings["token"]
    config = job.config
    torch.set_num_threads(config.threads_per_worker)
    coordinator = CoordinatorClient(settings["coordinator"], _rank(), token.generation)
    checkpoint = _checkpoint(config.output, settings["start_step"])
    engine = _engine(job, checkpoint)
    log = _step_log(job, checkpoint, coordinator, engine)
    del checkpoint  # on every rank as large as weights and optimizer state together
    writer = CheckpointWriter(config.checkpoint, token)
    agreement = Agreement(coordinator, writer)
    validation = _validator(job, engine.device, log, coordinator)
    batches = one_ahead(_batches(job, log.step, engine.device), engine.device)
    stop_reason, consumed = StopReason.NONE, list[MicroBatch]()

    while log.step < job.total_steps and stop_reason is StopReason.NONE:
        learning_rate = _learning_rate(job, log.step)
        set_learning_rate(engine.optimizer, learning_rate)
        losses, consumed = [], []
        for turn in range(engine.gradient_accumulation_steps()):
            coordinator.mark(log.step, turn, Activity.WAITING_FOR_DATA)
            batch = log.next_batch(batches)
            coordinator.mark(log.step, turn, Activity.FORWARD)
            loss = engine(batch)
            coordinator.mark(log.step, turn, Activity.BACKWARD)
            engine.backward(loss)
            engine.step()  # takes a step only when the global batch is complete
            losses.append(loss.detach())
            consumed.append(batch)

        coordinator.mark(log.step, len(losses), Activity.AGREEING)
        # A finite loss may have gradients that are not: neither what they made of the weights nor a lost step is saved.
        sound_loss = torch.where(step_was_sound(engine), torch.stack(losses).mean(), torch.nan)
        mean_loss, failed_views, due, stop_reason = agreement(sound_loss, consumed, log.step + 1)
        if stop_reason is StopReason.NOT_FINITE or failed_views == config.global_batch:
            stop_reason = max(stop_reason, StopReason.UNDECODABLE)
            break
        measured = validation(log.step + 1, gather_weights(engine)) if validation.due(log.step + 1) else {}
        log.record(mean_loss, learning_rate, consumed, failed_views=failed_views, validation=measured)
        if due or measured or stop_reason in (StopReason.REQUESTED, StopReason.RESIZED) or log.step == job.total_steps:
            state = _state(job, engine, log, settings.get("run_id"), validation.metric(measured))
            if _rank() == 0:
                coordinator.mark(log.step, 0, Activity.SAVING)
                writer.save(state, log.take_lines())

    failure = _failure(stop_reason, log.step, consumed)
    coordinator.mark(log.step, 0, Activity.SAVING)
    writer.finish()
    stopped = stop_reason is StopReason.REQUESTED and log.step < job.total_steps
    result = WorkerResult(log.step, stopped, failure or writer.failure)
    if _rank() == 0:
        coordinator.end(result)
    coordinator.close()


def known_failures(extra: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(epoch, sample id) of the views whose decoding took too long, so that a resumed run decides alike."""
    return [(epoch, sample) for epoch, sample in extra.get("timed_out", [])]


def _checkpoint(output: str, step: int) -> Checkpoint | None:
    """The checkpoint that the driver found, and cut the stream at; none for a run that begins."""
    if step == 0:
        return None
    checkpoint = read_checkpoint(output, step)
    if checkpoint is None:
        raise RuntimeError(f"{output}: the checkpoint of step {step} was damaged since the run was started")
    return checkpoint


def _engine(job: TrainingJob, checkpoint: Checkpoint | None) -> Any:
    """The DeepSpeed engine, with the checkpoint's weights and optimizer state."""
    config = job.config
    torch.manual_seed(derive_seed(config.seed, "init"))
    step = job.phase.build_step(load_init=checkpoint is None)
    if checkpoint:
        step.model.load_state_dict(checkpoint.weights)
    if config.compile:
        step.model.compile(dynamic=False)
    settings = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": job.micro_batches // dist.get_world_size(),
        "gradient_clipping": config.optimizer.clip_gradient_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,  # SGD: a plain torch optimizer, tested here
        "steps_per_print": 2**31,
    }
    engine = start_engine(step, build_optimizer(step.model, config.optimizer), settings)
    if checkpoint:
        scatter_optimizer_state(engine, checkpoint.optimizer)
    return engine


def start_engine(step: TrainStep, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """DeepSpeed's engine around a step, in a process group that stands.

    Without DeepSpeed's own compiled operations: on a CPU every worker would build shared-memory sums, which only
    inference uses. That takes half a minute, and a worker killed meanwhile leaves a lock file behind, for which every
    later worker on that host waits without end (`torch.utils.file_baton`).
    """
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed.initialize(model=step, optimizer=optimizer, config=settings, dist_init_required=False)[0]


def _batches(job: TrainingJob, start_step: int, device: torch.device) -> Iterator[MicroBatch]:
    """This rank's micro-batches in order: of every global batch numbers rank, rank + workers, ..."""
    config, workers = job.config, dist.get_world_size()
    shard = ray.train.get_dataset_shard("train")
    for turn, columns in enumerate(iter_micro_batches(shard)):
        number = turn * workers + _rank()
        step, index = start_step + number // job.micro_batches, number % job.micro_batches
        position = step * config.global_batch + index * config.micro_batch
        if int(columns["position"][0]) != position:
            raise RuntimeError(f"the stream delivered position {columns['position'][0]} where {position} was due")
        yield micro_batch_from_columns(columns, seed=config.seed, step=step, index=index, device=device)


def _learning_rate(job: TrainingJob, step: int) -> float:
    return learning_rate_at(
        step,
        total_steps=job.total_steps,
        warmup_steps=job.warmup_steps,
        peak=scaled_learning_rate(job.config.optimizer, job.config.global_batch),
        final=job.config.schedule.final_learning_rate,
    )


def _step_log(job: TrainingJob, checkpoint: Checkpoint | None, coordinator: CoordinatorClient, engine: Any) -> Journal:
    config = job.config
    if _rank() == 0:
        logging.getLogger().addHandler(coordinator)
    return Journal(
        start_step=checkpoint.step if checkpoint else 0,
        total_steps=job.total_steps,
        global_batch=config.global_batch,
        every=config.log_every_steps,
        trace=config.trace_samples,
        coordinator=coordinator,
        multiply_adds=engine.module.multiply_adds(),
        peak=peak_tflops(engine.device, config.precision),
        timed_out=known_failures(checkpoint.extra) if checkpoint else (),
    )


class Agreement:
    """What all ranks must know alike after a step, in one reduction: loss, failures, checkpoints, reasons to end."""

    def __init__(self, coordinator: CoordinatorClient, writer: CheckpointWriter) -> None:
        self._coordinator, self._writer = coordinator, writer
        self._notice_asked_at = time.monotonic()

    def __call__(self, loss: Tensor, consumed: Sequence[MicroBatch], step: int) -> tuple[float, int, bool, StopReason]:
        """Mean loss, number of failed views, whether a checkpoint is due, the reason to end: same on every rank.

        Args:
            loss: mean over this rank's micro-batches, a scalar.
            consumed: this rank's micro-batches.
            step: optimizer steps done.
        """
        self._writer.look()
        stop_request = StopReason.UNSAVED if self._writer.failure else self._coordinator.stop_request()
        failed_views = sum(len(batch.failures) for batch in consumed)
        votes = [stop_request is reason for reason in StopReason]
        # Clocks differ between ranks; the first one decides what is due.
        first_decides = [self._writer.due(step), self._may_ask_for_notice()] if _rank() == 0 else [False, False]
        figures = torch.tensor([0, failed_views, *first_decides, *votes], dtype=torch.float64, device=loss.device)
        figures[0] = loss / dist.get_world_size()
        dist.all_reduce(figures)
        mean_loss, failed, due, ask, *counted = figures.tolist()
        stop_reason = max(reason for reason in StopReason if counted[reason] or reason is StopReason.NONE)
        if ask and self._preempted():
            stop_reason = max(stop_reason, StopReason.REQUESTED)
        if not math.isfinite(mean_loss):
            stop_reason = StopReason.NOT_FINITE
        return mean_loss, int(failed), bool(due), stop_reason

    def _may_ask_for_notice(self) -> bool:
        """Asking waits for all ranks, so it is done now and then only."""
        if time.monotonic() - self._notice_asked_at < SECONDS_BETWEEN_NOTICES:
            return False
        self._notice_asked_at = time.monotonic()
        return True

    def _preempted(self) -> bool:
        notice = ray.train.get_preemption_info()
        if notice is not None and _rank() == 0:
            logger.warning("a host is about to be taken away (ranks %s); saving and stopping", notice.preempted_ranks)
        return notice is not None


def _validator(job: TrainingJob, device: torch.device, log: Journal, coordinator: CoordinatorClient) -> Validator:
    config = job.config
    return Validator(
        config.validation,
        open_prepared(config.data, job.data_version),
        lambda: job.phase.build_step(load_init=False),
        view=config.views,
        decode=config.decode,
        every_steps=job.steps_between_measurements,
        last_step=job.total_steps,
        device=device,
        output=config.output,
        labelled_only=job.phase.labelled_only,
        seed=config.seed,
        on_clip=lambda clip: coordinator.mark(log.step, clip, Activity.MEASURING),
    )


def _state(job: TrainingJob, engine: Any, log: Journal, run_id: str | None, metric: float | None) -> Checkpoint:
    """All that the run needs to go on, whole on the rank that saves; all ranks must call it."""
    saves = _rank() == 0
    weights, optimizer = gather_weights(engine, keep=saves), gather_optimizer_state(engine, keep=saves)
    extra = {"run_key": job.run_key, "mlflow_run_id": run_id, "timed_out": log.timed_out}
    return Checkpoint(log.step, log.step * job.config.global_batch, weights, optimizer, extra, metric)


def _failure(stop_reason: StopReason, step: int, consumed: Sequence[MicroBatch]) -> str:
    """What to tell the person when the batch is why training cannot go on, else nothing; all ranks must call it."""
    if stop_reason is StopReason.NOT_FINITE:
        samples = gather_in_stream_order([batch.sample_ids for batch in consumed])
        return (
            f"step {step + 1}: the loss or its gradient is not finite; samples of this batch: {', '.join(samples)}; "
            "checkpoints are kept: lower optimizer.learning_rate, set optimizer.clip_gradient_norm, or look at these "
            "clips"
        )
    if stop_reason is StopReason.UNDECODABLE:
        reasons = sorted({failure.reason for batch in consumed for failure in batch.failures})
        return f"step {step + 1}: no view of the global batch could be decoded ({', '.join(reasons)}); look at the data"
    return ""


def _rank() -> int:
    return dist.get_rank()
