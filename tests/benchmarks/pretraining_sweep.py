"""What of pretraining matters: `python -m tests.benchmarks.pretraining_sweep [--seeds 3] [--folder build/...]`.

Mask ratios, fusion, targets and decoders, on the model of `bench_pretraining_pays` and fine-tuned like there, for fewer
steps: top-1 with ten labels a class. The decoders are compared at equal steps and at equal time of training. Each run
is a child of one MLflow run; the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from rich.console import Console
from rich.table import Table

from jobs.runs.tracking import recorded, start_run
from jobs.runs.tracking_config import TrackingConfig
from tests.benchmarks.bench_pretraining_pays import CORES, FULL, MIXING
from tests.benchmarks.motion_learning import Task, digest_of, draw_sets, learned, mean_and_spread

FOLDER = Path(__file__).parents[2] / "build" / "pretraining_sweep"
MLFLOW_WAIT_SECONDS = 120.0
# Easier and shorter than `FULL`: thirty runs in 80 minutes on two cores.
SWEPT = dataclasses.replace(FULL, difficulty=0.3, unlabelled=2000, pretrain_steps=1500, finetune_steps=80)
USUAL = "usual: 0.9, fusion, pixels, full"


@dataclass(frozen=True)
class Variant:
    """One way to pretrain."""

    name: str
    keys: tuple[str, ...] = ()
    equal_time: bool = False
    """As long as the usual way takes, instead of as many steps."""


VARIANTS = (
    Variant(USUAL),
    *(Variant(f"mask ratio {ratio}", (f"mask_ratio={ratio}",)) for ratio in (0.5, 0.75, 0.95)),
    Variant("no fusion", ("model_overrides.multi_scale_fusion=false",)),
    Variant("HOG target", ("model_overrides.target=hog",)),
    *(
        Variant(f"decoder {decoder}, equal {what}", (f"model_overrides.decoder={decoder}",), what == "time")
        for decoder in ("subset", "cross")
        for what in ("steps", "time")
    ),
)


def swept(
    task: Task, variants: Sequence[Variant], seeds: Sequence[int], folder: Path, processes: int = 1
) -> dict[str, dict[str, Any]]:
    """Figures by variant: mean top-1 and its spread in points, steps and seconds of pretraining.

    What is kept in ``folder`` is of one task. Runs of equal time wait for the usual way of their seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_sets(task, folder)
    tracking = TrackingConfig(f"sqlite:///{folder.resolve()}/mlflow.db", "pretraining sweep")
    parent = start_run(tracking, command="sweep", run_key="pretraining sweep", output=str(folder))
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    with recorded(parent), ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        parent_run_id = parent.wait_for_id(MLFLOW_WAIT_SECONDS)
        for equal_time in (False, True):
            begun = {
                pool.submit(
                    figures_of, task, variant, seed, folder, found[USUAL, seed]["seconds"] if equal_time else None
                ): (variant, seed)
                for variant in variants
                if variant.equal_time == equal_time
                for seed in seeds
            }
            for future in as_completed(begun):
                variant, seed = begun[future]
                found[variant.name, seed] = _recorded_child(
                    variant, seed, folder, future.result(), tracking.uri, parent_run_id
                )
    parent.finish()
    return {variant.name: _row([found[variant.name, seed] for seed in seeds]) for variant in variants}


def figures_of(task: Task, variant: Variant, seed: int, folder: Path, seconds: float | None) -> dict[str, float]:
    """Pretrain and fine-tune one variant with one seed, in a process of its own."""
    place = _place(folder, variant, seed)
    place.mkdir(parents=True, exist_ok=True)
    return learned(
        task,
        seed,
        folder,
        place / "top1.json",
        place / "pretrained.safetensors",
        pretrain_keys=variant.keys,
        finetune_keys=MIXING,
        seconds=seconds,
    )


def _recorded_child(
    variant: Variant, seed: int, folder: Path, figures: Mapping[str, float], uri: str | None, parent: str | None
) -> Mapping[str, float]:
    """Record a run as a child when it is done for the first time."""
    place = _place(folder, variant, seed)
    done = place / "recorded.json"
    if not done.exists():
        name = f"{variant.name}, seed {seed}"
        tracking, tags = TrackingConfig(uri, "pretraining sweep"), {MLFLOW_PARENT_RUN_ID: parent}
        run = start_run(
            tracking, command="pretrain", run_key=name, output=str(place), params=_params(variant, seed), tags=tags
        )
        with recorded(run):
            run.log_metrics(figures)
        run.finish()
        done.write_text(json.dumps(figures))
        Console().print(f"{name}: top-1 {100 * figures['top1']:.1f} after {figures['steps']} steps, "
                        f"{figures['seconds']:.0f} s", highlight=False)  # fmt: skip
    return figures


def _place(folder: Path, variant: Variant, seed: int) -> Path:
    name = f"{variant.name}, seed {seed}"
    return folder / name.replace(":", "").replace(", ", "-").replace(" ", "_")


def _params(variant: Variant, seed: int) -> dict[str, Any]:
    return {"variant": variant.name, "seed": seed, **dict(key.split("=", 1) for key in variant.keys)}


def _row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    points, spread = mean_and_spread([100 * run["top1"] for run in runs])
    means = {key: mean_and_spread([run[key] for run in runs])[0] for key in ("steps", "seconds")}
    return {"top-1, points": points, "spread": spread, "seeds": len(runs), **means}


def main() -> None:
    """Run what is not done, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pretraining_sweep", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--processes", type=int, default=CORES, help="of one thread each")
    arguments = parser.parse_args()
    folder = arguments.folder / digest_of(SWEPT)
    rows = swept(SWEPT, VARIANTS, range(arguments.seeds), folder, arguments.processes)
    table = Table("", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
