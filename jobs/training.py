"""The driver's side of training, for both phases: plan, start the workers, and what is left to do at the end."""

from __future__ import annotations

import gc
import json
import math
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.data
import torch
from ray.train import (
    ControllerError,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer
from torch import Tensor, nn

from hiera_video import save_model
from jobs.checkpoint import (
    Cursor,
    complete_steps,
    discard_after,
    latest_checkpoint,
    measured_steps,
    newest_cursor,
    read_checkpoint,
    read_journal,
)
from jobs.cluster import connect
from jobs.config import config_dict, config_yaml
from jobs.errors import StopRequestedError, TrainingStoppedError, UserError
from jobs.initial_weights import BEST_WEIGHTS, WEIGHTS
from jobs.lease import Lease, take_lease
from jobs.node_metrics import node_metrics
from jobs.output import claim_output
from jobs.pictures import curve_picture
from jobs.program import replace
from jobs.room import RoomForWorkers, refuse_to_wait_for_ever
from jobs.run_watch import RunWatch
from jobs.tracking import Run, data_tags, recorded, start_run, tracking_uri, unrecorded
from jobs.train_config import TrainConfig
from jobs.trainer import Phase, TrainingJob, WorkerResult, known_failures, train_worker
from pipeline import (
    PreparedSet,
    StorageError,
    absolute,
    exists,
    iter_micro_batches,
    join,
    open_prepared,
    patiently,
    read_bytes,
    stream_cpus,
    stream_execution_options,
    training_stream,
    write_bytes,
)

ConfigT = TypeVar("ConfigT", bound=TrainConfig)

LEAST_READ_AHEAD_BYTES = 2 * 2**30
MICRO_BATCHES_AHEAD = 4  # one is decoded, one waits for its turn in the order, two are fetched ahead by a worker
CURVES = ("loss", "learning_rate", "clips_per_second")


def run_training(
    program: str, config: TrainConfig, phase: Phase, *, links: Mapping[str, str | None], metadata: Mapping[str, str]
) -> tuple[dict[str, Any], nn.Module, Run]:
    """Train to the end, going on from what is there, and write weights and journal.

    Args:
        program: its name, for messages and MLflow.
        config: what the phase was made of, `with_absolute_places`.
        links: tags that tie this run to others.
        metadata: facts to keep inside the weights file, besides run id and program.

    Returns:
        the report's figures, the trained model on the CPU, and the MLflow run, still open.

    Raises:
        UserError: a mistake in the configuration, found before any worker starts.
        StopRequestedError: SIGTERM or a pre-emption notice arrived; a checkpoint was written.
        TrainingStoppedError: training cannot go on, or another start took the output over.
    """
    newest = open_prepared(config.data)
    try:
        phase.build_step(load_init=True)  # mistakes in the weights show here, not in a worker
    except ValueError as error:
        raise UserError(f"{program}: {error}") from error
    tags = {key: value for key, value in links.items() if value} | data_tags(newest)
    pins = {"data_version": newest.version, "program": program, "tags": tags}
    claim = claim_output(config.output, config, pins=pins)
    prepared = open_prepared(config.data, claim.pins["data_version"])  # the set may have grown since
    write_bytes(join(config.output, "config.yaml"), config_yaml(config).encode())
    job = plan_job(config, phase, program, claim.run_key, prepared)
    connect()
    refuse_to_wait_for_ever(config.worker_range, config.decode_actors)
    run = start_run(
        config.tracking,
        program=program,
        run_key=claim.run_key,
        output=config.output,
        params=config_dict(config),
        tags=links,
        prepared=prepared,
    )
    with recorded(run), node_metrics(run):
        lease = train(job, take_lease(config.output), run)
    lease.check()
    model = _trained_model(job)
    facts = {"program": program, "run_key": claim.run_key, "run_id": run.wait_for_id(5) or "", **metadata}
    _save_weights(config.output, WEIGHTS, model, facts)
    figures = _write_journal(job) | _save_best_weights(job, facts)
    run.log_params({"total_steps": job.total_steps})
    run.fill_gaps(journal_lines(config.output))
    return {"run_id": run.run_id, "steps": job.total_steps, **figures}, model, run


def loss_curves(output: str, folder: Path) -> Path:
    """A picture of the journal: loss, learning rate and speed against steps."""
    lines = journal_lines(output)
    path = folder / "curves.png"
    curve_picture([(key, [line[key] for line in lines]) for key in CURVES], path)
    return path


def journal_lines(output: str) -> list[dict[str, Any]]:
    """The journal of a run that reached its end."""
    return [json.loads(line) for line in read_bytes(join(output, "metrics.jsonl")).decode().splitlines()]


def claimed_set(config: TrainConfig) -> PreparedSet:
    """The data of the run that ``output`` holds, in that run's version; the newest version where there is no such run.

    Raises:
        StorageError: the set is missing or cannot be read.
    """
    place = join(config.output, "run.json")
    claim = json.loads(read_bytes(place)) if exists(place) else {"config": {}}
    its_own = claim["config"].get("data") == absolute(config.data)
    return open_prepared(config.data, claim["pins"].get("data_version") if its_own else None)


def sample_views(config: TrainConfig, count: int) -> Tensor:
    """The first views of the run's stream: uint8 ``[count, T, H, W, 3]``."""
    stream = training_stream(
        claimed_set(config),
        config.view,
        seed=config.seed,
        micro_batch=count,
        start_position=0,
        stop_position=count,
        split="train",
        labelled_only=False,
        decode=config.decode,
        concurrency=1,
    )
    return torch.from_numpy(next(iter_micro_batches(stream))["video"].copy())


def close_run(config: TrainConfig, run: Run, figures: Mapping[str, Any], pictures: Sequence[Path]) -> dict[str, Any]:
    """Keep the pictures under ``output`` and in MLflow, and end the run there. Returns the whole report."""
    places = {}
    for picture in pictures:
        places[picture.stem] = join(config.output, picture.name)
        write_bytes(places[picture.stem], picture.read_bytes())
        run.log_artifact(picture)
    run.log_metrics({"final_loss": figures["final_loss"]})
    return {**figures, **places, "tracked": run.finish()}


def plan_job(config: TrainConfig, phase: Phase, program: str, run_key: str, prepared: PreparedSet) -> TrainingJob:
    """Turn effective epochs, of one view per clip each, into steps.

    Raises:
        UserError: the set holds no clip to train on.
    """
    clips = prepared.num_clips("train", labelled_only=phase.labelled_only)
    if clips == 0:
        wanted = "labelled training clips" if phase.labelled_only else "training clips"
        raise UserError(f"data={config.data}: holds no {wanted}; `python -m jobs.inspect data={config.data}` shows it")
    steps_per_epoch = clips / config.global_batch
    total = config.steps or max(1, math.ceil((config.epochs or 0) * steps_per_epoch))
    warmup = min(total, round(config.schedule.warmup_epochs * steps_per_epoch))
    # The driver alone speaks to MLflow: workers, and what Ray shows of a job, need not know where or as whom.
    told = unrecorded(config)
    between = config.held_out.steps_between(steps_per_epoch)
    return TrainingJob(told, phase, total, warmup, program, run_key, prepared.version, between)


def train(job: TrainingJob, lease: Lease, run: Run) -> Lease:
    """Run the job to its last step, going on from the newest checkpoint; returns when all steps are saved.

    Groups of workers follow each other: after a death, after a hang, with more or fewer workers. Ray Train could
    replace them itself, but its elastic groups take every CPU, also those that decoding needs, and are resized without
    a checkpoint.

    Returns:
        the lease of the last group.

    Raises:
        StopRequestedError: SIGTERM or a pre-emption notice arrived; a checkpoint was written.
        TrainingStoppedError: the loss is not finite, nothing can be saved, or another start took the output over.
    """
    config, failures = job.config, 0
    room = RoomForWorkers(config.worker_range, stream_cpus(config.decode_actors))
    watch = RunWatch(
        job.program,
        job.total_steps,
        hang_minutes=config.hang_minutes,
        saving_minutes=config.checkpoint.max_unsaved_minutes,
        room=room,
        on_steps=partial(_track, run),
    )
    with room.asked_for(), watch.watching():
        cursor = _cut_back(config.output)
        while cursor.step < job.total_steps:
            workers = room.wait(config.hang_minutes * 60, tell=watch.say, given_up=lambda: watch.stop_requested)
            if watch.stop_requested:
                raise _stopped_on_request(job)
            watch.begin(lease, workers, cursor.step)
            try:
                _run_group(job, lease, watch, cursor, workers, run.run_id)
            except (ControllerError, TrainingFailedError) as error:
                no_room = isinstance(error, ControllerError) and room.could_not_start(workers)
                failures += not no_room
                if watch.stop_requested and not watch.lost:
                    raise _stopped_on_request(job) from error
                if failures > config.max_failures or watch.lost:
                    raise TrainingStoppedError(watch.lost or _what_happened(error, failures)) from error
                watch.say(f"warning: {_what_happened(error, failures)}; going on from the last checkpoint")
            watch.pause()
            gc.collect()  # the error holds the dead group's controller, too, in a circle
            lease, cursor = _between_groups(lease)
    return lease


def _cut_back(output: str) -> Cursor:
    """Where the next group goes on from; torn checkpoints after it are deleted."""
    cursor = newest_cursor(output)
    discard_after(output, cursor.step)
    return cursor


def _between_groups(lease: Lease) -> tuple[Lease, Cursor]:
    """The next attempt and where it goes on from; storage that fails now is no mistake of the user's."""
    try:
        patiently(lease.check)
        following = lease.renewed()
        return following, patiently(partial(_cut_back, lease.output))
    except StorageError as error:
        raise TrainingStoppedError(f"{error}; the checkpoints are kept: the same command goes on") from error


def _stopped_on_request(job: TrainingJob) -> StopRequestedError | TrainingStoppedError:
    """How a run ends that was asked to stop while no worker could save any more."""
    step = max(complete_steps(job.config.output), default=0)
    if not step:
        return TrainingStoppedError("asked to stop before the first checkpoint; the same command begins anew")
    return _saved_and_stopped(job, step)


def _saved_and_stopped(job: TrainingJob, step: int) -> StopRequestedError:
    return StopRequestedError(f"saved at step {step} of {job.total_steps}; the same command goes on from there")


def _track(run: Run, lines: Sequence[Mapping[str, Any]]) -> None:
    """Hand journal lines, and the pictures that belong to them, to MLflow's sender."""
    run.log_steps(lines)
    for line in lines:
        if "picture" in line.get("held_out", {}):
            run.log_stored_artifact(line["held_out"]["picture"], "pictures")


def _run_group(
    job: TrainingJob, lease: Lease, watch: RunWatch, cursor: Cursor, workers: int, run_id: str | None
) -> None:
    """One group of workers from the cursor to its end."""
    settings = {"job": job, "board": watch.board, "lease": lease, "start_step": cursor.step, "run_id": run_id}
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder, _own_interrupt():
        TorchTrainer(
            train_worker,
            train_loop_config=settings,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=watch.room.gpus),
            run_config=RunConfig(
                storage_path=folder,  # Ray's own bookkeeping; checkpoints are ours, so a fresh place for every group
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
            datasets={"train": lambda: _stream(job, cursor)},
            dataset_config=DataConfig(execution_options=stream_execution_options(_read_ahead(job, watch, workers))),
        ).fit()
    result = watch.result()
    if watch.lost or result is None:
        raise TrainingStoppedError(watch.lost or f"{job.program}: the workers ended without a result")
    ended = WorkerResult(**result)
    if ended.failure:
        raise TrainingStoppedError(ended.failure)
    if ended.stopped:
        raise _saved_and_stopped(job, ended.step)


def read_ahead_bytes(config: TrainConfig, workers: int) -> int:
    """How much may be decoded ahead: a few micro-batches for every decoder and worker."""
    micro_batch = config.micro_batch * config.view.num_frames * config.view.size**2 * 3
    return max(LEAST_READ_AHEAD_BYTES, MICRO_BATCHES_AHEAD * (config.decode_actors + workers) * micro_batch)


def _read_ahead(job: TrainingJob, watch: RunWatch, workers: int) -> int:
    """`read_ahead_bytes`; said, where the cluster has no room for them."""
    wanted = read_ahead_bytes(job.config, workers)
    room = ray.cluster_resources().get("object_store_memory", 0) / 2  # the share that Ray Data takes at most
    if wanted > room:
        watch.say(
            f"warning: micro_batch={job.config.micro_batch}, decode_actors={job.config.decode_actors}: decoding ahead "
            f"would take {wanted / 2**30:.1f} GiB, half of the cluster's object store is {room / 2**30:.1f}: decoders "
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
    ranks = ", ".join(f"rank {rank}: {_last_line(cause)}" for rank, cause in sorted(causes.items()))
    return f"workers died ({ranks or _last_line(error)}; failure {failures})"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def _stream(job: TrainingJob, cursor: Cursor) -> ray.data.Dataset:
    """The micro-batches from the cursor to the end of the run."""
    config = job.config
    return training_stream(
        open_prepared(config.data, job.data_version),
        config.view,
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


def _trained_model(job: TrainingJob) -> nn.Module:
    checkpoint = latest_checkpoint(job.config.output)
    if checkpoint is None or checkpoint.step < job.total_steps:
        raise RuntimeError(f"{job.config.output}: the last checkpoint is gone or damaged; start the command again")
    model = job.phase.build_step(load_init=False).model
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def _save_weights(output: str, name: str, model: nn.Module, metadata: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save_model(path, model, metadata)
        write_bytes(join(output, name), path.read_bytes())


def _save_best_weights(job: TrainingJob, facts: Mapping[str, str]) -> dict[str, Any]:
    """The weights that were best on held-out clips, beside the last ones; which step they are of."""
    measured = measured_steps(job.config.output) if job.config.checkpoint.keep_best else []
    checkpoints = (read_checkpoint(job.config.output, step) for _, step in measured)
    best = next((checkpoint for checkpoint in checkpoints if checkpoint is not None), None)
    if best is None:
        return {}
    model = job.phase.build_step(load_init=False).model
    model.load_state_dict(best.weights)
    _save_weights(job.config.output, BEST_WEIGHTS, model, {**facts, "step": str(best.step)})
    return {"best_step": best.step}


def _write_journal(job: TrainingJob) -> dict[str, Any]:
    """Join the segments to ``metrics.jsonl``; figures of the run from them."""
    text = read_journal(job.config.output, job.total_steps)
    write_bytes(join(job.config.output, "metrics.jsonl"), text.encode())
    lines = [json.loads(line) for line in text.splitlines()]
    # The first steps include start-up; the median step is what a long run sees.
    rates = sorted(line["clips_per_second"] for line in lines)
    measured: Mapping[str, Any] = next((line["held_out"] for line in reversed(lines) if "held_out" in line), {})
    return {
        **{f"held_out_{key}": value for key, value in measured.items() if key not in ("seconds", "picture")},
        "first_loss": lines[0]["loss"],
        "final_loss": lines[-1]["loss"],
        "clips_per_second": rates[len(rates) // 2],
        "failed_views": float(sum(len(line.get("failures", [])) for line in lines)),
    }


def with_absolute_places(config: ConfigT) -> ConfigT:
    """Workers have folders of their own, so every place that they are told is made absolute first."""
    uri = tracking_uri(config.tracking, config.output) or "none"
    return replace(
        config,
        data=absolute(config.data),
        output=absolute(config.output),
        init=absolute(config.init) if config.init else None,
        tracking=replace(config.tracking, uri=uri),
    )
