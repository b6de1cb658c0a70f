"""The driver's loop over groups of workers: one after the other, from checkpoint to checkpoint, until the last step."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from jobs.checkpoints.store import Cursor, complete_steps, discard_after, newest_cursor
from jobs.core.errors import StopRequestedError, TrainingStoppedError, storage_trouble_stops
from jobs.runs.fencing import FencingToken
from jobs.runs.tracking import Run
from jobs.supervision.capacity import WorkerCapacity
from jobs.supervision.hosts import offered_by_host
from jobs.supervision.process_group import HostsByTheirAddress
from jobs.supervision.watchdog import Watchdog
from jobs.training.job import TrainingJob, WorkerResult
from jobs.training.loop import train_worker
from jobs.training.stream import Streams, read_ahead_bytes
from pipeline.datasets.train import NODE_ID_LABEL
from pipeline.series import LAST_CHECKPOINT, record_steps, stamp
from pipeline.storage.errors import last_line
from pipeline.storage.files import StorageError

START = Cursor()


def train(job: TrainingJob, token: FencingToken, run: Run, cursor: Cursor = START) -> FencingToken:
    """Run the job to its last step, from the newest checkpoint on; returns when all steps are saved.

    Groups of workers follow each other: after a death, a hang or a notice that a host is taken away, with more or fewer
    workers. Ray Train could replace them itself, but its elastic groups take every CPU, also those that decoding
    needs, and are resized without a checkpoint. ``cursor`` is the newest one when the start looked; returns the token
    of the last group.

    Raises:
        StopRequestedError: SIGTERM arrived, or the notice that this host is taken away; a checkpoint was written.
        TrainingStoppedError: the loss is not finite, nothing can be saved, or another start took the output over.
    """
    config, failures = job.config, 0
    stamp(LAST_CHECKPOINT)
    capacity = WorkerCapacity(config.worker_numbers, config.decoders)
    watchdog = Watchdog(
        job.command,
        job.total_steps,
        hang_minutes=config.hang_minutes,
        saving_minutes=config.checkpoint.max_unsaved_minutes,
        capacity=capacity,
        on_steps=partial(_track, run, job.command),
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
                if not (
                    no_capacity or watchdog.host_announced
                ):  # failures count as long as nothing is saved between them
                    failures = 1 if _saved_after(config.output, cursor.step) else failures + 1
                if watchdog.stop_requested and not watchdog.lost:
                    raise _stopped_on_request(job) from error
                if reported := _reported_failure(watchdog):
                    raise TrainingStoppedError(reported) from error
                if failures > config.max_failures or watchdog.lost:
                    raise watchdog.lost or TrainingStoppedError(_what_happened(error, failures)) from error
                watchdog.log(f"warning: {_what_happened(error, failures)}; resuming from the last checkpoint")
            watchdog.pause()
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


def _reported_failure(watchdog: Watchdog) -> str:
    """Why a rank said, before it died, that new workers would not help; else nothing."""
    with suppress(RayError):  # the coordinator may have died, too: then it is the watchdog's to report
        return str((watchdog.result() or {}).get("failure", ""))
    return ""


def _saved_after(output: str, step: int) -> bool:
    """Whether a checkpoint of a later step is complete; False where storage does not say."""
    with suppress(StorageError):
        return max(complete_steps(output), default=0) > step
    return False


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


def _track(run: Run, program: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Hand journal lines, and the pictures that belong to them, to MLflow's sender; show them to Prometheus."""
    run.log_steps(lines)
    record_steps(program, lines, run.backlog)
    for line in lines:
        if "picture" in line.get("validation", {}):
            run.log_stored_artifact(line["validation"]["picture"], "pictures")


def _run_group(
    job: TrainingJob, token: FencingToken, watchdog: Watchdog, cursor: Cursor, workers: int, run_id: str | None
) -> None:
    """One group of workers from the cursor to its end."""
    hosts = watchdog.capacity.hosts_for(workers)
    _log_streams(job, watchdog, hosts, workers)
    settings = {
        "job": job,
        "token": token,
        "coordinator": watchdog.coordinator,
        "start_step": cursor.step,
        "run_id": run_id,
        "streams": Streams(on_every_host=hosts is not None),
    }
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder, _own_interrupt():
        TorchTrainer(
            train_worker,
            train_loop_config=settings,
            torch_config=HostsByTheirAddress(
                coordinator=watchdog.coordinator, generation=token.generation, timeout_s=job.config.collective_seconds
            ),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=watchdog.capacity.gpus,
                label_selector=[{NODE_ID_LABEL: host} for host in hosts] if hosts else None,
            ),
            run_config=RunConfig(
                storage_path=folder,  # Ray's own bookkeeping; checkpoints are ours, so a new folder for every group
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
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


def _log_streams(job: TrainingJob, watchdog: Watchdog, hosts: Sequence[str] | None, workers: int) -> None:
    """Log what is not normal: streams on several hosts, one for all of them, object stores too small to read ahead."""
    offered = offered_by_host()
    # A head with num_cpus=0 runs neither workers nor decoders.
    if hosts is None and sum(bool(one.get("CPU") or one.get("GPU")) for one in offered.values()) > 1:
        watchdog.log(
            f"warning: workers={workers}, decode_actors={job.config.decoders}: the hosts of the workers lack CPUs for "
            "decoding, so one data stream serves all of them, and decoded frames cross the network; use fewer "
            "workers or decoders on each host, or hosts with more CPUs"
        )
    streams = Counter(hosts) if hosts else {}
    if len(streams) > 1:
        watchdog.log(f"a data stream on each of {len(streams)} hosts")
    stores = {host: resources.get("object_store_memory", 0.0) for host, resources in offered.items()}
    for host, ranks in streams.items() or [(None, workers)]:
        store = stores.get(host, 0.0) if host else sum(stores.values())
        if _object_store_too_small(job, watchdog, store, ranks):
            return  # a warning for one host says enough


def _object_store_too_small(job: TrainingJob, watchdog: Watchdog, store: float, workers: int) -> bool:
    """Whether an object store lacks capacity for what a stream decodes ahead; warns of it."""
    wanted, capacity = read_ahead_bytes(job.config, workers), store / 2  # the share that Ray Data takes at most
    if wanted > capacity:
        watchdog.log(
            f"warning: micro_batch={job.config.micro_batch}, decode_actors={job.config.decoders}: decoding ahead "
            f"would take {wanted / 2**30:.1f} GiB, half of the object store is {capacity / 2**30:.1f}: decoders "
            "may wait; use less of either, or start Ray with a larger --object-store-memory"
        )
    return wanted > capacity


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
    count = f"; failure {failures} since the last checkpoint" if failures else ""
    return f"workers died ({ranks or last_line(error)[:300]}{count})"
