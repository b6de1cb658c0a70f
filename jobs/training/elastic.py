"""The driver's loop over groups of workers: one after the other, from checkpoint to checkpoint, until the last step."""

from __future__ import annotations

import gc
import math
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError
from ray.train import ControllerError, DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from jobs.checkpoints.store import Cursor, complete_steps, discard_after, newest_cursor
from jobs.core.errors import StopRequestedError, TrainingStoppedError, last_line, storage_trouble_stops
from jobs.runs.fencing import FencingToken
from jobs.runs.tracking import Run
from jobs.supervision.capacity import WorkerCapacity
from jobs.supervision.process_group import HostsByTheirAddress
from jobs.supervision.watchdog import Watchdog
from jobs.training.config import TrainConfig
from jobs.training.job import TrainingJob, WorkerResult
from jobs.training.loop import known_failures, train_worker
from pipeline.datasets.train import stream_cpus, stream_execution_options, training_stream
from pipeline.storage.files import StorageError

START = Cursor()
LEAST_READ_AHEAD_BYTES = 2 * 2**30
MICRO_BATCHES_AHEAD = 4  # one is decoded, one waits for its turn in the order, two are fetched ahead by a worker


def train(job: TrainingJob, token: FencingToken, run: Run, cursor: Cursor = START) -> FencingToken:
    """Run the job to its last step, from the newest checkpoint on; returns when all steps are saved.

    Groups of workers follow each other: after a death, after a hang, with more or fewer workers. Ray Train could
    replace them itself, but its elastic groups take every CPU, also those that decoding needs, and are resized without
    a checkpoint. ``cursor`` is the newest one when the start looked; returns the token of the last group.

    Raises:
        StopRequestedError: SIGTERM or a pre-emption notice arrived; a checkpoint was written.
        TrainingStoppedError: the loss is not finite, nothing can be saved, or another start took the output over.
    """
    config, failures = job.config, 0
    capacity = WorkerCapacity(config.worker_range, stream_cpus(config.decode_actors))
    watchdog = Watchdog(
        job.command,
        job.total_steps,
        hang_minutes=config.hang_minutes,
        saving_minutes=config.checkpoint.max_unsaved_minutes,
        capacity=capacity,
        on_steps=partial(_track, run),
    )
    with capacity.requested(), watchdog.watching():
        cursor = _cut_back(config.output, cursor)
        while cursor.step < job.total_steps:
            workers = capacity.wait(
                config.hang_minutes * 60, echo=watchdog.log, given_up=lambda: watchdog.stop_requested
            )
            if watchdog.stop_requested:
                raise _stopped_on_request(job)
            watchdog.begin(token, workers, cursor.step)
            run.refresh_known_steps()  # the start that this one took over from may have sent steps meanwhile
            try:
                _run_group(job, token, watchdog, cursor, workers, run.run_id)
            except (ControllerError, TrainingFailedError, RayError) as error:  # the last: its controller died
                no_capacity = isinstance(error, ControllerError) and capacity.could_not_start(workers)
                failures += not no_capacity
                if watchdog.stop_requested and not watchdog.lost:
                    raise _stopped_on_request(job) from error
                if failures > config.max_failures or watchdog.lost:
                    raise watchdog.lost or TrainingStoppedError(_what_happened(error, failures)) from error
                watchdog.log(f"warning: {_what_happened(error, failures)}; resuming from the last checkpoint")
            watchdog.pause()
            gc.collect()  # the error holds the dead group's controller, too, in a circle
            token, cursor = _between_groups(token)
    return token


def _cut_back(output: str, known: Cursor = START) -> Cursor:
    """Where the next group resumes; torn checkpoints after it are deleted.

    Args:
        known: a cursor that was read before the output was taken over; it counts unless more was saved since.
    """
    # Reading a cursor reads its whole checkpoint, to check the digests; listing the steps costs little.
    newest = max(complete_steps(output), default=0)
    cursor = known if known.step == newest else newest_cursor(output)
    discard_after(output, cursor.step)
    return cursor


def _between_groups(token: FencingToken) -> tuple[FencingToken, Cursor]:
    """The next generation and where it resumes; storage that fails now is not the user's mistake."""
    with storage_trouble_stops():
        token.check()
        following = token.next_generation()
        return following, _cut_back(token.output)


def _stopped_on_request(job: TrainingJob) -> StopRequestedError | TrainingStoppedError:
    """How a run ends that got a stop request while no worker could save."""
    try:
        step = max(complete_steps(job.config.output), default=0)
    except StorageError as error:
        return TrainingStoppedError(f"stop requested, and what is saved cannot be read: {error}")
    if not step:
        return TrainingStoppedError(
            "stop requested before the first checkpoint; the same command starts from the beginning"
        )
    return _saved_and_stopped(job, step)


def _saved_and_stopped(job: TrainingJob, step: int) -> StopRequestedError:
    return StopRequestedError(f"saved at step {step} of {job.total_steps}; the same command resumes there")


def _track(run: Run, lines: Sequence[Mapping[str, Any]]) -> None:
    """Hand journal lines, and the pictures that belong to them, to MLflow's sender."""
    run.log_steps(lines)
    for line in lines:
        if "picture" in line.get("validation", {}):
            run.log_stored_artifact(line["validation"]["picture"], "pictures")


def _run_group(
    job: TrainingJob, token: FencingToken, watchdog: Watchdog, cursor: Cursor, workers: int, run_id: str | None
) -> None:
    """One group of workers from the cursor to its end."""
    settings = {
        "job": job,
        "token": token,
        "coordinator": watchdog.coordinator,
        "start_step": cursor.step,
        "run_id": run_id,
    }
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder, _own_interrupt():
        TorchTrainer(
            train_worker,
            train_loop_config=settings,
            torch_config=HostsByTheirAddress(coordinator=watchdog.coordinator, generation=token.generation),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=watchdog.capacity.gpus),
            run_config=RunConfig(
                storage_path=folder,  # Ray's own bookkeeping; checkpoints are ours, so a new folder for every group
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
            datasets={"train": lambda: _stream(job, cursor)},
            dataset_config=DataConfig(execution_options=stream_execution_options(_read_ahead(job, watchdog, workers))),
        ).fit()
    result = watchdog.result()
    if watchdog.lost or result is None:
        raise watchdog.lost or TrainingStoppedError(f"{job.command}: the workers ended without a result")
    ended = WorkerResult(**result)
    if ended.failure:
        with suppress(StorageError):
            token.check()  # another start may be why
        raise TrainingStoppedError(ended.failure)
    if ended.stopped:
        raise _saved_and_stopped(job, ended.step)


def read_ahead_bytes(config: TrainConfig, workers: int) -> int:
    """How much may be decoded ahead: a few micro-batches for every decoder and worker."""
    micro_batch = config.micro_batch * math.prod(config.input_size) * 3
    return max(LEAST_READ_AHEAD_BYTES, MICRO_BATCHES_AHEAD * (config.decode_actors + workers) * micro_batch)


def _read_ahead(job: TrainingJob, watchdog: Watchdog, workers: int) -> int:
    """`read_ahead_bytes`, with a warning where the cluster has no capacity for them."""
    wanted = read_ahead_bytes(job.config, workers)
    capacity = ray.cluster_resources().get("object_store_memory", 0) / 2  # the share that Ray Data takes at most
    if wanted > capacity:
        watchdog.log(
            f"warning: micro_batch={job.config.micro_batch}, decode_actors={job.config.decode_actors}: decoding ahead "
            f"would take {wanted / 2**30:.1f} GiB, half of the object store is {capacity / 2**30:.1f}: decoders "
            "may wait; use less of either, or start Ray with a larger --object-store-memory"
        )
    return wanted


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Take Ctrl-C back from Ray Train, whose handler would hold the controller, and so the CPUs of its stream."""
    former = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _what_happened(error: Exception, failures: int) -> str:
    """One line on why a group of workers died."""
    causes = getattr(error, "worker_failures", {})
    ranks = ", ".join(f"rank {rank}: {last_line(cause)[:300]}" for rank, cause in sorted(causes.items()))
    return f"workers died ({ranks or last_line(error)[:300]}; failure {failures})"


def _stream(job: TrainingJob, cursor: Cursor) -> ray.data.Dataset:
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
        decode=config.decode,
        concurrency=config.decode_actors,
        known_failures=known_failures(cursor.extra),
    )
