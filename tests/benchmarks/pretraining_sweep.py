"""What of pretraining matters: `python -m tests.benchmarks.pretraining_sweep [--seeds 3] [--folder build/...]`.

Mask ratios, fusion, targets and decoders, each fine-tuned like `bench_pretraining_pays`: top-1 with ten labels a class.
The decoders are compared at equal steps and at equal time of training. Each run is a child of one MLflow run; the same
command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from jobs.motion_videos import MOTION_CLASSES
from jobs.tracking import TrackingConfig, recorded, start_run
from tests.benchmarks.bench_pretraining_pays import FULL, MIXING
from tests.benchmarks.motion_learning import Task, clips_of, finetune_config, finetuned_top1, pretrain, pretrain_config

FOLDER = Path(__file__).parents[2] / "build" / "pretraining_sweep"
MLFLOW_WAIT_SECONDS = 120.0
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


def swept(task: Task, variants: Sequence[Variant], seeds: Sequence[int], folder: Path) -> dict[str, dict[str, Any]]:
    """Figures by variant: mean top-1 and its spread in points, steps and seconds of pretraining."""
    folder.mkdir(parents=True, exist_ok=True)
    tracking = TrackingConfig(f"sqlite:///{folder.resolve()}/mlflow.db", "pretraining sweep")
    parent = start_run(tracking, program="sweep", run_key="pretraining sweep", output=str(folder))
    with recorded(parent):
        parent_run_id = parent.wait_for_id(MLFLOW_WAIT_SECONDS)
        runs: dict[str, list[Mapping[str, Any]]] = {variant.name: [] for variant in variants}
        for seed in seeds:
            for variant in variants:
                seconds = runs[USUAL][-1]["seconds"] if variant.equal_time else None
                runs[variant.name].append(_child(task, variant, seed, folder, seconds, tracking.uri, parent_run_id))
    parent.finish()
    return {name: _row(some) for name, some in runs.items()}


def _child(
    task: Task, variant: Variant, seed: int, folder: Path, seconds: float | None, uri: str | None, parent: str | None
) -> Mapping[str, Any]:
    """One variant and seed, recorded as a child run when it is done for the first time."""
    name = f"{variant.name}, seed {seed}"
    place = folder / name.replace(":", "").replace(", ", "-").replace(" ", "_")
    done = place / "figures.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    config = pretrain_config(task, seed, *variant.keys)
    tracking = TrackingConfig(uri, "pretraining sweep", parent)
    run = start_run(tracking, program="pretrain", run_key=name, output=str(place), params=_params(variant, seed))
    with recorded(run):
        figures = _figures(task, config, seed, folder, place, seconds)
        run.log_metrics(figures)
    run.finish()
    done.write_text(json.dumps(figures))
    return figures


def _figures(task: Task, config: Any, seed: int, folder: Path, place: Path, seconds: float | None) -> dict[str, float]:
    place.mkdir(parents=True, exist_ok=True)
    unlabelled, _ = clips_of(task, "unlabelled", task.unlabelled, 1, folder)
    labelled = clips_of(task, "labelled", task.labels_per_class * len(MOTION_CLASSES), 2, folder)
    held_out = clips_of(task, "held-out", task.held_out, 3, folder)
    weights = place / "pretrained.safetensors"
    pretrained = pretrain(config, unlabelled, weights, seconds=seconds)
    top1 = finetuned_top1(finetune_config(task, seed, *MIXING), labelled, held_out, place / "top1.json", weights)
    return {"top1": top1, "loss": pretrained["final_loss"], "steps": pretrained["steps"],
            "seconds": pretrained["seconds"]}  # fmt: skip


def _params(variant: Variant, seed: int) -> dict[str, Any]:
    return {"variant": variant.name, "seed": seed, **dict(key.split("=", 1) for key in variant.keys)}


def _row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    points = [100 * run["top1"] for run in runs]
    spread = float(np.std(points, ddof=1)) if len(points) > 1 else 0.0
    means = {key: float(np.mean([run[key] for run in runs])) for key in ("steps", "seconds")}
    return {"top-1, points": float(np.mean(points)), "spread": spread, "seeds": len(points), **means}


def main() -> None:
    """Run what is not done, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pretraining_sweep", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = swept(FULL, VARIANTS, range(arguments.seeds), arguments.folder)
    table = Table("", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
