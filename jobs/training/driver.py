"""The driver's side of training, for both phases: plan, start the workers, and what is left to do at the end."""

from __future__ import annotations

import json
import math
import posixpath
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hiera_video.weights.checkpoint_files import save_model
from jobs.checkpoints.store import (
    best_checkpoint,
    latest_checkpoint,
    newest_cursor,
    read_journal,
)
from jobs.core.cli import echo, replace
from jobs.core.config import config_dict, config_yaml
from jobs.core.errors import TrainingStoppedError, UserError, storage_trouble_stops
from jobs.core.init_source import BEST_WEIGHTS, RUN_LINK, WEIGHTS, absolute_init, is_registered, link_to_initial_run
from jobs.core.ray_cluster import connect
from jobs.reports.plots import Panel, curve_panels
from jobs.runs.claim import claim_output, earlier_claim, pins_of, release_output
from jobs.runs.fencing import acquire_token
from jobs.runs.node_metrics import node_metrics
from jobs.runs.tracking import Run, data_tags, recorded, start_run, tracking_uri, unrecorded
from jobs.supervision.capacity import check_capacity
from jobs.training.config import TrainConfig
from jobs.training.elastic import train
from jobs.training.loop import Phase, TrainingJob
from jobs.training.validation import check_validation
from jobs.weights.registry import KEPT, initial_file, keep_under
from pipeline.datasets.train import iter_micro_batches, training_stream
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.storage.files import StorageError, absolute, exists, join, read_bytes, write_bytes

ConfigT = TypeVar("ConfigT", bound=TrainConfig)

Pictures = Callable[[nn.Module, Path], Sequence[Path]]

CURVES = ("loss", "learning_rate", "clips_per_second")


def run_training(
    command: str,
    config: TrainConfig,
    phase: Phase,
    *,
    links: Mapping[str, str | None],
    metadata: Mapping[str, str],
    pictures: Pictures,
    pins: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train to the end, going on from what is there; write weights, journal and pictures, and end the MLflow run.

    Args:
        command: its name, for messages and MLflow.
        config: what the phase was made of, `with_absolute_paths`.
        links: tags that tie this run to others.
        metadata: facts to keep inside the weights file, besides run id and command.
        pictures: draws what shall be kept of the trained model (on the CPU) into a folder.
        pins: what later starts of this run shall find as it is now.

    Returns:
        the report.

    Raises:
        UserError: a mistake in the configuration, found before any worker starts.
        StopRequestedError: SIGTERM or a pre-emption notice arrived; a checkpoint was written.
        TrainingStoppedError: training cannot go on, storage fails, or another start took the output over.
    """
    job, prepared = _claimed(command, config, phase, links, pins or {})
    run = start_run(
        config.tracking,
        command=command,
        run_key=job.run_key,
        output=config.output,
        params=config_dict(config),
        tags=links,
        prepared=prepared,
    )
    with recorded(run), storage_trouble_stops():
        write_bytes(join(config.output, "config.yaml"), config_yaml(config).encode())
        with node_metrics(run):
            token = train(job, acquire_token(config.output), run)
        token.check()
        return _finished(job, run, metadata, pictures)


def _claimed(
    command: str, config: TrainConfig, phase: Phase, links: Mapping[str, str | None], pins: Mapping[str, Any]
) -> tuple[TrainingJob, PreparedSet]:
    """Make the output this run's, and plan on the data that it was pinned to; mistakes leave the output free."""
    newest = open_prepared(config.data)
    _check_weights(config, phase)
    tags = {key: value for key, value in links.items() if value} | data_tags(newest)
    pins = {"data_version": newest.version, "command": command, "tags": tags, **pins}
    if config.init and is_registered(config.init):
        pins["init"] = posixpath.basename(str(phase.config.init))
    claim = claim_output(config.output, config, pins=pins)
    if claim.pins.get("init") != pins.get("init"):
        raise UserError(
            f"init={config.init}: another start of output={config.output} was first, with other weights; run the same "
            "command again to go on with those"
        )
    try:
        prepared = open_prepared(config.data, claim.pins["data_version"])  # the set may have grown since
        job = plan_job(config, phase, command, claim.run_key, prepared)
        connect()
        check_capacity(config.worker_range, config.decode_actors)
    except (UserError, StorageError):
        release_output(config.output, claim)  # nothing was begun: the mended command is not refused
        raise
    return job, prepared


def _check_weights(config: TrainConfig, phase: Phase) -> None:
    """Mistakes in the weights show here, not in a worker; a run that goes on has them in its checkpoint."""
    try:
        phase.build_step(load_init=True)
    except (ValueError, UserError) as error:
        if newest_cursor(config.output).step == 0:
            told = str(error).removeprefix(f"{config.init}: ")
            raise error if isinstance(error, UserError) else UserError(f"init={config.init}: {told}") from error


def _finished(job: TrainingJob, run: Run, metadata: Mapping[str, str], pictures: Pictures) -> dict[str, Any]:
    """What is left to do once all steps are saved; the report."""
    output, model = job.config.output, _trained_model(job)
    facts = {"command": job.command, "run_key": job.run_key, "run_id": run.wait_for_id(5) or "", **metadata}
    _save_weights(output, WEIGHTS, model, facts)
    figures = _write_journal(job) | _save_best_weights(job, facts)
    run.log_params({"total_steps": job.total_steps})
    run.fill_gaps(journal_lines(output))
    run.log_metrics({"final_loss": figures["final_loss"]})
    with tempfile.TemporaryDirectory() as folder:
        places = _kept(pictures(model, Path(folder)), output, run)
    return {"run_id": run.run_id, "steps": job.total_steps, **figures, **places, "tracked": run.finish()}


def _kept(pictures: Sequence[Path], output: str, run: Run) -> dict[str, str]:
    """Keep pictures under ``output`` and in MLflow; where they are, by name."""
    places = {picture.stem: join(output, picture.name) for picture in pictures}
    for picture in pictures:
        write_bytes(places[picture.stem], picture.read_bytes())
        run.log_artifact(picture)
    return places


def loss_curves(output: str, folder: Path) -> Path:
    """A picture of the journal: loss, learning rate and speed against steps."""
    lines = journal_lines(output)
    path = folder / "curves.png"
    steps = range(1, len(lines) + 1)
    path.write_bytes(
        curve_panels([[Panel(key, "step", {key: (steps, [line[key] for line in lines])}) for key in CURVES]])
    )
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


def initial_links(output: str, init: str | None) -> dict[str, str]:
    """Tags that tie a run to those that `init` comes from; of a run that goes on, as they were at its first start.

    Raises:
        UserError: see `jobs.core.init_source.initial_metadata`.
    """
    tags = pins_of(output).get("tags")
    if tags is None:
        return link_to_initial_run(init)
    return {key: value for key, value in tags.items() if key.endswith(RUN_LINK)}


def with_initial_file(config: ConfigT) -> ConfigT:
    """The configuration with an `init` that workers can read: of a registered model, a copy under `output`.

    A run that goes on has the copy that it began with, whatever an alias points to by then.

    Raises:
        UserError: see `initial_file`; or `output` holds a run with another configuration.
    """
    if config.init is None or not is_registered(config.init):
        return config
    earlier = earlier_claim(config.output, config)
    if earlier is not None:
        return replace(config, init=join(config.output, KEPT, earlier.pins["init"]))
    with initial_file(config.init, config.tracking, config.output) as file:
        return replace(config, init=keep_under(config.output, file))


def sample_views(config: TrainConfig, count: int) -> Tensor:
    """The first views of the run's stream: uint8 ``[count, T, H, W, 3]``."""
    stream = training_stream(
        claimed_set(config),
        config.views,
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


def plan_job(config: TrainConfig, phase: Phase, command: str, run_key: str, prepared: PreparedSet) -> TrainingJob:
    """Turn effective epochs, of one view per clip each, into steps.

    Raises:
        UserError: the set holds no clip to train on.
    """
    clips = prepared.num_clips("train", labelled_only=phase.labelled_only)
    if clips == 0:
        wanted = "labelled training clips" if phase.labelled_only else "training clips"
        raise UserError(f"data={config.data}: holds no {wanted}; `python -m jobs.inspect data={config.data}` shows it")
    check_validation(config.validation, prepared, phase.labelled_only)
    steps_per_epoch = clips / config.global_batch
    total = config.steps or max(1, math.ceil((config.epochs or 0) * steps_per_epoch))
    warmup = min(total, round(config.schedule.warmup_epochs * steps_per_epoch))
    if warmup == total:
        echo(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g}: the warm-up takes all {total} steps, so the "
            "learning rate never falls; give fewer epochs of it, or more steps",
            warning=True,
        )
    # The driver alone speaks to MLflow: workers, and what Ray shows of a job, need not know where or as whom.
    told = unrecorded(config)
    between = config.validation.steps_between(steps_per_epoch)
    return TrainingJob(told, phase, total, warmup, command, run_key, prepared.version, between)


def _trained_model(job: TrainingJob) -> nn.Module:
    checkpoint = latest_checkpoint(job.config.output)
    if checkpoint is None or checkpoint.step < job.total_steps:
        raise TrainingStoppedError(
            f"output={job.config.output}: the last checkpoint is gone or damaged; the same command goes on from the "
            "one before"
        )
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
    best = best_checkpoint(job.config.output) if job.config.checkpoint.keep_best else None
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
    measured: Mapping[str, Any] = next((line["validation"] for line in reversed(lines) if "validation" in line), {})
    return {
        **{f"validation_{key}": value for key, value in measured.items() if key not in ("seconds", "picture")},
        "first_loss": lines[0]["loss"],
        "final_loss": lines[-1]["loss"],
        "clips_per_second": rates[len(rates) // 2],
        "failed_views": float(sum(len(line.get("failures", [])) for line in lines)),
    }


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """Workers have folders of their own, so every place that they are told is made absolute first."""
    uri = tracking_uri(config.tracking, config.output) or "none"
    return replace(
        config,
        data=absolute(config.data),
        output=absolute(config.output),
        init=absolute_init(config.init) if config.init else None,
        tracking=replace(config.tracking, uri=uri),
    )
