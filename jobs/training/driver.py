"""The driver of a training run, for both phases: plan, run the workers, write what remains after the last step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hiera_video.weights.checkpoint_files import save_model
from jobs.checkpoints.store import Checkpoint, best_checkpoint, latest_checkpoint, read_journal
from jobs.core.cli import echo, write_figures
from jobs.core.config import config_dict, config_yaml
from jobs.core.errors import TrainingStoppedError, UserError, storage_trouble_stops
from jobs.core.init_source import BEST_WEIGHTS, WEIGHTS
from jobs.core.ray_cluster import connect, has_gpus, node_addresses
from jobs.reports.plots import Panel, curve_panels
from jobs.runs.fencing import acquire_token
from jobs.runs.node_metrics import node_metrics
from jobs.runs.tracking import Run, recorded, start_run
from jobs.supervision.capacity import check_capacity
from jobs.supervision.process_group import listening
from jobs.training.elastic import train
from jobs.training.job import Phase, TrainingJob, plan_job
from jobs.training.start import Start
from jobs.training.stream import with_decoders
from pipeline.storage.files import join, read_bytes, write_bytes

CURVES = ("loss", "learning_rate", "clips_per_second")


def run_training(start: Start[Any], phase: Phase) -> dict[str, Any]:
    """Train to the last step, from the cursor of the start; write weights, journal, pictures; returns the report.

    Raises:
        UserError: a mistake in the configuration, found before any worker starts.
        StopRequestedError: SIGTERM arrived, or the notice that this host is taken away; a checkpoint was written.
        TrainingStoppedError: training cannot continue, storage fails, or another start took the output over.
    """
    assert start.claim is not None
    config = start.config
    _check_weights(start, phase)
    job = plan_job(start.command, start.claim.run_key, config, phase, start.prepared)
    connect()
    job = with_decoders(job, gpus=has_gpus())
    check_capacity(config.worker_numbers, job.config.decoders)
    echo(listening(node_addresses(), has_gpus()))
    run = start_run(
        config.tracking,
        command=job.command,
        run_key=job.run_key,
        output=config.output,
        params=config_dict(config),
        tags=start.links,
        prepared=start.prepared,
    )
    with recorded(run), storage_trouble_stops():
        write_bytes(join(config.output, "config.yaml"), config_yaml(config).encode())
        with node_metrics(run):
            # From here on the output is this start's: any other one that still runs notices and stops.
            token = train(job, acquire_token(config.output), run, start.cursor)
        token.check()
        return _finished(job, run)


def _check_weights(start: Start[Any], phase: Phase) -> None:
    """Mistakes in the weights show here, not in a worker; a run that resumes has its weights in the checkpoint."""
    if start.cursor.step:
        return
    try:
        phase.build_step(load_init=True)
    except ValueError as error:
        init = start.config.init
        raise UserError(f"init={init}: {str(error).removeprefix(f'{init}: ')}") from error


def _finished(job: TrainingJob, run: Run) -> dict[str, Any]:
    """What is left to do once all steps are saved; the report."""
    output, model = job.config.output, _trained_model(job)
    facts = {"command": job.command, "run_key": job.run_key, "run_id": run.wait_for_id(5) or "", **job.phase.metadata}
    _save_weights(output, WEIGHTS, model, facts)
    figures = _write_journal(job) | _save_best_weights(job, facts)
    run.log_params({"total_steps": job.total_steps})
    lines = journal_lines(output)
    run.fill_gaps(lines)
    run.log_metrics({"final_loss": figures["final_loss"]})
    write_figures(output, figures)  # before the pictures, which must not cost them
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / "curves.png"
        steps = range(1, len(lines) + 1)
        panels = [Panel(key, "step", {key: (steps, [line[key] for line in lines])}) for key in CURVES]
        curves.write_bytes(curve_panels([panels]))
        pictures = [curves, *job.phase.pictures(model, job.prepared, Path(folder))]
        uris = _kept(pictures, output, run)
    return {"run_id": run.run_id, "steps": job.total_steps, **figures, **uris, "tracked": run.finish()}


def _kept(pictures: Sequence[Path], output: str, run: Run) -> dict[str, str]:
    """Keep pictures under ``output`` and in MLflow; their URIs by name."""
    uris = {picture.stem: join(output, picture.name) for picture in pictures}
    for picture in pictures:
        write_bytes(uris[picture.stem], picture.read_bytes())
        run.log_artifact(picture)
    return uris


def journal_lines(output: str) -> list[dict[str, Any]]:
    """The journal of a run that reached its end."""
    return [json.loads(line) for line in read_bytes(join(output, "metrics.jsonl")).decode().splitlines()]


def _trained_model(job: TrainingJob) -> nn.Module:
    checkpoint = latest_checkpoint(job.config.output)
    if checkpoint is None or checkpoint.step < job.total_steps:
        raise TrainingStoppedError(
            f"output={job.config.output}: the last checkpoint is missing or damaged; the same command resumes from the "
            "one before"
        )
    return _model(job, checkpoint).eval()


def _model(job: TrainingJob, checkpoint: Checkpoint) -> nn.Module:
    model: nn.Module = job.phase.build_step(load_init=False).model
    model.load_state_dict(checkpoint.weights)
    return model


def _save_weights(output: str, name: str, model: nn.Module, metadata: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save_model(path, model, metadata)
        write_bytes(join(output, name), path.read_bytes())


def _save_best_weights(job: TrainingJob, facts: Mapping[str, str]) -> dict[str, Any]:
    """The weights that were best on validation clips, beside the last ones; which step they are of."""
    best = best_checkpoint(job.config.output) if job.config.checkpoint.keep_best else None
    if best is None:
        return {}
    _save_weights(job.config.output, BEST_WEIGHTS, _model(job, best), {**facts, "step": str(best.step)})
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
