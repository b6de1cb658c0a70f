"""Unit costs as they were measured: by `make bench` (`build/bench.json`), or by a training run (its journal)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from hiera_video.analysis.flops import complexity_of
from jobs.checkpoints.recorded_run import CONFIG, RecordedRun, read_run
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.core.holdings import CLAIM
from jobs.planning.cluster import CPU, Gpu
from jobs.planning.unit_costs import UnitCost, UnitCosts
from jobs.training.config import TrainConfig
from jobs.training.mfu import BACKWARD_AND_FORWARD, FLOPS_PER_MULTIPLY_ADD
from jobs.training.steps.finetune import FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig
from pipeline.storage.files import StorageError, absolute, exists, join, read_json

CONFIGURATIONS: Mapping[str, type[TrainConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
SAME_PEAK = 0.1  # GPUs whose peaks differ less are of one kind
MOST = 1e9  # of a figure that is believed
TAG_PROCESSES = 2  # that decode in `bench_tag`


@dataclass(frozen=True)
class Speed:
    """What a training run has shown."""

    step_seconds: float
    flops: float
    """Sustained by one worker."""
    utilisation: float | None
    """Of its device's peak; None where that was unknown."""
    when: str


def measured_costs(path: str, gpu: Gpu, costs: UnitCosts) -> UnitCosts:
    """The unit costs, those of the file or run in place of the others.

    Raises:
        UserError: ``path`` is neither, or holds no figure that a plan uses.
    """
    uri = absolute(path)
    try:
        if exists(join(uri, CLAIM)):
            return _of_run(path, training_speed(read_run(uri), uri), gpu, costs)
        return _of_benchmarks(path, read_json(uri), costs)
    except StorageError as error:
        raise UserError(f"measured={path}: {error.happened}; give build/bench.json or the output of a run") from error


def training_speed(run: RecordedRun, output: str) -> Speed:
    """The median step of a run's journal.

    Raises:
        UserError: it has no step, or its configuration is not one of training.
    """
    lines = [line for line in run.lines if line.get("clips_per_second")]
    if not lines or run.command not in CONFIGURATIONS:
        raise UserError(f"measured={output}: has no journal of steps; give the output of pretrain or finetune")
    arguments = [join(output, CONFIG), "tracking.uri=none"]
    config: Any = load_config(CONFIGURATIONS[run.command], run.command, arguments)
    rate = statistics.median_high(line["clips_per_second"] for line in lines)
    shares = [share for line in lines if (share := line.get("model_flop_utilisation"))]
    when = datetime.fromtimestamp(lines[-1].get("unix_seconds") or 0, UTC)
    return Speed(
        step_seconds=config.global_batch / rate,
        flops=rate * flops_a_view(config) / config.worker_numbers[-1],
        utilisation=statistics.median(shares) if shares else None,
        when=f"{when:%Y-%m-%d}",
    )


def flops_a_view(config: Any) -> float:
    """FLOP of a step for one view, forward and backward."""
    return float(passes_of(config) * FLOPS_PER_MULTIPLY_ADD * complexity_of(config.encoder).multiply_adds)


def passes_of(config: TrainConfig) -> int:
    """Forward passes that a step's arithmetic is worth: of an encoder that does not learn, one."""
    return 1 if isinstance(config, FinetuneConfig) and config.learn != "all" else BACKWARD_AND_FORWARD


def _of_run(path: str, speed: Speed, gpu: Gpu, costs: UnitCosts) -> UnitCosts:
    """On a GPU of the same peak, and where none is known, a worker is as fast again; else it is used as well."""
    peak = speed.flops / speed.utilisation if speed.utilisation else None
    if peak is None or gpu.name == CPU or abs(peak / gpu.peak_flops("bf16") - 1) < SAME_PEAK:
        return replace(costs, flops=UnitCost(speed.flops, path, speed.when))
    assert speed.utilisation is not None
    where = f"{path}, on a device of {peak / 1e12:.3g} TFLOP/s"
    return replace(costs, utilisation=UnitCost(speed.utilisation, where, speed.when))


def _of_benchmarks(path: str, results: Mapping[str, Any], costs: UnitCosts) -> UnitCosts:
    found = {
        "decode_seconds": _benchmark(results, "pipeline", 1e-3, "transcode, auto, 4 views a clip", "ms a view"),
        "micro_batches_a_second": _benchmark(results, "pipeline", 1, "blocks/s of one stream"),
        "transcode_seconds": _benchmark(results, "prepare", 1, "transcode", "CPU s a minute"),
        "validate_seconds": _benchmark(results, "prepare", 1, "passthrough", "CPU s a minute"),
        "stored_share": _benchmark(results, "prepare", 1, "transcode", "bytes"),
        "window_seconds": _inverse(_benchmark(results, "tag", 1 / TAG_PROCESSES, "tag, fp32", "bare decode/s")),
    }
    measured = {name: cost for name, cost in found.items() if cost is not None}
    if not measured:
        raise UserError(
            f'measured={path}: has no result that a plan uses; run `make bench NAMES="pipeline prepare tag"`, or '
            "give the output of a training run"
        )
    return replace(costs, **measured)


def _benchmark(results: Mapping[str, Any], name: str, unit: float, *keys: str) -> UnitCost | None:
    """A figure of a benchmark; None where it was not run, or is damaged."""
    result: Any = results.get(name)
    value: Any = result.get("figures") if isinstance(result, Mapping) else None
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if type(value) not in (int, float) or not 0 < value < MOST:
        return None
    machine = result.get("machine")
    processor = machine.get("processor") if isinstance(machine, Mapping) else None
    return UnitCost(value * unit, str(processor or "unknown machine"), str(result.get("date", "unknown"))[:10])


def _inverse(cost: UnitCost | None) -> UnitCost | None:
    return None if cost is None else UnitCost(1 / cost.value, cost.where, cost.when)
