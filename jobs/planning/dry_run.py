"""Estimates of what a training run takes, before any GPU or Ray is used; writes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hiera_video.rules import Checked, Rules
from jobs.checkpoints.grace_time import DEFAULT_SECONDS
from jobs.checkpoints.store import read_journal
from jobs.core.holdings import is_registered
from jobs.core.init_source import local_weights
from jobs.planning.memory import GIB, checkpoint_bytes, planned_sharding, trained_size, worker_memory
from jobs.planning.unit_costs import UnitCosts
from jobs.training.config import AUTO, TrainConfig
from jobs.training.job import Phase, TrainingJob, plan_job
from jobs.training.sharding.costs import STAGES, sent_bytes
from jobs.training.start import Start
from jobs.training.stream import DECODE_SECONDS_PER_VIEW, decoders_wanted, views_per_gpu_second


@dataclass(frozen=True)
class PlanConfig(Checked):
    """What to plan for: keys of `--dry-run` alone."""

    hours: float = 24.0
    """Hours that the run may take, from which the views per second that it needs follow."""
    step_seconds: float | None = None
    """Measured seconds of an optimizer step, from which the hours follow. Default: from the journal under `output`."""

    def rules(self) -> Rules:
        for key in ("hours", "step_seconds"):
            value = getattr(self, key)
            yield key, value is None or value > 0, "must be positive; leave it out for the default"


def dry_run_figures(start: Start[Any], phase: Phase, plan: PlanConfig) -> dict[str, Any]:
    """Length, speed that is needed, memory of one worker by ZeRO stage, and size of checkpoints.

    Raises:
        UserError: the set holds no clip to train on, or `init` names nothing.
    """
    config, prepared = start.config, start.prepared
    if config.init and not is_registered(config.init) and start.claim is None:
        with local_weights(config.init):  # exists
            pass
    job = plan_job("dry run", "", config, phase, prepared)
    clips = prepared.num_clips("train", labelled_only=phase.labelled_only)
    views = job.total_steps * config.global_batch
    step = phase.build_step(load_init=False)
    model_config: Any = step.model.config
    size, costs = trained_size(config, model_config), UnitCosts()
    sharding = planned_sharding(config, size)
    memory = worker_memory(config, sharding, size.activation_bytes)
    checkpoint = checkpoint_bytes(sharding) / GIB
    return {
        "clips": clips,
        "classes": len(prepared.classes),
        "data version": f"{prepared.version} ({prepared.digest[:12]})",
        "steps": job.total_steps,
        "warm-up steps": job.warmup_steps,
        "views": views,
        "videos a step, each of view.repeats views": config.global_batch / config.view.repeats,
        "permitted numbers of workers": ", ".join(map(str, config.worker_numbers)),
        "peak learning rate": config.peak_learning_rate,
        "effective epochs (views / clips)": views / clips,
        "passes over the data, each of view.repeats views a clip": views / clips / config.view.repeats,
        "parameters": size.parameters,
        "multiply-adds a view, forward": f"{size.multiply_adds / 1e9:.4g} G",
        **_speed(config, plan, job, start.cursor.step, size.multiply_adds),
        **_decoding(config, step.multiply_adds()),
        **{f"GiB a worker, ZeRO {n}{' (chosen)' * (n == config.zero_stage)}": gib for n, gib in memory.items()},
        **{f"GiB a worker sends in a step, ZeRO {n}": sent_bytes(n, sharding) / GIB for n in STAGES},
        "GiB a checkpoint": checkpoint,
        f"seconds to write it at {costs.write_rate.value / 1e6:.0f} MB/s ({costs.write_rate.basis}), of "
        f"{DEFAULT_SECONDS:g} after SIGTERM": checkpoint * GIB / costs.write_rate.value,
        # One is being written while the next one is gathered and waits; all workers read the same one.
        "GiB of host memory for checkpoints, first worker": 2 * checkpoint,
        "GiB of host memory to resume, every worker": checkpoint,
        "GiB of checkpoints kept": checkpoint * (config.checkpoint.keep + config.checkpoint.keep_best),
    }


def _speed(config: TrainConfig, plan: PlanConfig, job: TrainingJob, done: int, multiply_adds: int) -> dict[str, Any]:
    """Views a second for the wanted duration, or the duration at the measured step."""
    measured = plan.step_seconds or _journal_step_seconds(config, done)
    views = (job.total_steps - done) * config.global_batch
    figures: dict[str, Any] = {"steps done already": done} if done else {}
    if measured:
        figures["seconds a step, measured"] = measured
        figures["hours at that speed"] = (job.total_steps - done) * measured / 3600
        rate = config.global_batch / measured
    else:
        rate = views / (plan.hours * 3600)
    basis = "at that speed" if measured else f"needed to end in {plan.hours:g} hours"
    return figures | {
        f"views a second {basis}": rate,
        f"cores that decode, {basis}": rate * DECODE_SECONDS_PER_VIEW,
        f"model TFLOP/s {basis}": rate * multiply_adds * 6 / 1e12,
    }


def _decoding(config: TrainConfig, step_multiply_adds: int | None) -> dict[str, Any]:
    """What GPUs would take, against what is configured."""
    if not step_multiply_adds:
        return {}
    workers = config.worker_numbers[-1]
    wanted = decoders_wanted(workers, step_multiply_adds)
    actors = wanted if config.decode_actors == AUTO else config.decoders
    verdict = (
        "" if actors >= wanted else f"; too few for GPUs, which want {wanted}: use decode_actors={wanted}, or auto"
    )
    return {
        f"views a second that {workers} GPUs take (A100, or this machine's, 35 % utilisation)": workers
        * views_per_gpu_second(step_multiply_adds),
        "decode_actors on GPUs": f"{actors}, {actors / DECODE_SECONDS_PER_VIEW:.0f} views a second{verdict}",
    }


def _journal_step_seconds(config: TrainConfig, done: int) -> float | None:
    """Seconds of an optimizer step: the journal's median under `output`."""
    lines = [json.loads(line) for line in read_journal(config.output, done).splitlines()] if done else []
    rates = sorted(line["clips_per_second"] for line in lines)
    return config.global_batch / rates[len(rates) // 2] if rates else None
