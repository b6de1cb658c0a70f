"""Does pretraining pay? Top-1 with ten labels a class, from 0.9-masked pretraining and from scratch, over three seeds.

The same model of 72 mask units, fine-tuned for the same number of steps on the same labelled videos. Mixup, cutmix and
label smoothing are the paper's (Tab. 11b); because they can keep a model from scratch from learning at all in so few
steps, it is also trained without them, and the gain counts against the better of the two. Everything is kept under
build/bench_pretraining_pays: the same command goes on where it was cut off. Runs only by its name, because it takes
half an hour on two cores.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.synthetic.motion_videos import MOTION_CLASSES
from tests.benchmarks.motion_learning import Task, digest_of, draw_sets, learned, mean_and_spread

FOLDER = Path(__file__).parents[2] / "build" / "bench_pretraining_pays"
# Three stages, so that a mask unit is 4 × 4 tokens and a step takes a tenth of a second: below some thousand steps the
# autoencoder knows backgrounds only, and fine-tuning from it is worse than from scratch (see docs/tried.md).
MODEL = (
    "model_overrides.input_size=[16,48,48]",
    "model_overrides.mask_unit_size=[1,4,4]",
    "model_overrides.stages=[1,2,3]",
    "model_overrides.mask_unit_attn=[true,false,false]",
    "model_overrides.q_pool=2",
    "model_overrides.embed_dim=48",
    "model_overrides.num_heads=2",
)
PRETRAINING = (
    *MODEL,
    # Raw pixels: a shape's blurred guess already pays. Patches normalised one by one ask for its exact edges first.
    "model_overrides.target=pixels",
    "optimizer.layer_decay=1.0",
    "optimizer.learning_rate=9.6e-2",  # 1.5e-3 at a batch of 8 videos, twice each
)
MIXING = ("mix.mixup=0.8", "mix.cutmix=1.0", "label_smoothing=0.1")
FULL = Task(
    difficulty=0.42,  # where eighty labelled videos alone no longer suffice; see docs/tried.md
    unlabelled=4000,
    labels_per_class=10,
    validation=400,
    pretrain_steps=4500,
    finetune_steps=160,
    pretrain_keys=PRETRAINING,
    finetune_keys=(*MODEL, "new_blocks=0"),
    size=48,
    margin=4,
)
SMALL = dataclasses.replace(FULL, unlabelled=64, labels_per_class=2, validation=32, pretrain_steps=8, finetune_steps=4)
SEEDS = (0, 1, 2)
POINTS_DUE = 10.0
CORES = 2


@dataclass(frozen=True)
class Way:
    """How a classifier is come by."""

    name: str
    pretrained: bool
    keys: tuple[str, ...]
    """Changes to fine-tuning."""


PRETRAINED = Way("pretrained", True, MIXING)
FROM_SCRATCH = (Way("from scratch", False, MIXING), Way("from scratch, without mixing", False, ()))
WAYS = (PRETRAINED, *FROM_SCRATCH)


def run(quick: bool) -> dict[str, Any]:
    """Mean and spread of each way, in points of top-1, and what pretraining adds to the better way from scratch."""
    task, seeds = (SMALL, SEEDS[:2]) if quick else (FULL, SEEDS)
    return compared(task, seeds, FOLDER / digest_of(task), processes=CORES)


def compared(task: Task, seeds: tuple[int, ...], folder: Path, processes: int) -> dict[str, Any]:
    """The benchmark on any task; processes of one thread each."""
    draw_sets(task, folder)
    kept = sorted(path.stat().st_mtime for path in folder.glob("top1-*.json"))
    runs = [(way, seed) for way in WAYS for seed in seeds]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        scores = pool.map(top1_of, *zip(*[(task, folder, way, seed) for way, seed in runs], strict=True))
        found = dict(zip(runs, scores, strict=True))
    rows = {way.name: _row([found[way, seed] for seed in seeds]) for way in WAYS}
    rival = max(FROM_SCRATCH, key=lambda way: float(rows[way.name]["points"]))
    gains = [100 * (found[PRETRAINED, seed] - found[rival, seed]) for seed in seeds]
    gain, spread = mean_and_spread(gains)
    return {
        **rows,
        "gain": {
            "points": gain,
            "spread": spread,
            "over": rival.name,
            "due": POINTS_DUE,
            "passed": gain >= POINTS_DUE,
        },
        "chance": 100 / len(MOTION_CLASSES),
        "task": str(task),
        **({"kept": _kept(kept, len(runs), folder)} if kept else {}),
    }


def top1_of(task: Task, folder: Path, way: Way, seed: int) -> float:
    """One seed of one way, in a process of its own."""
    weights = folder / f"pretrained-{task.pretrain_steps}-{seed}.safetensors" if way.pretrained else None
    steps = f"{task.pretrain_steps if weights else 0}-{task.finetune_steps}"
    result = folder / f"top1-{steps}-{'mixed' if way.keys else 'plain'}-{seed}.json"
    return learned(task, seed, folder, result, weights, finetune_keys=way.keys)["top1"]


def _kept(times: list[float], runs: int, folder: Path) -> str:
    """What of the figures an earlier call measured, maybe with other code."""
    oldest = datetime.fromtimestamp(times[0]).isoformat(" ", "minutes")
    return f"{len(times)} of {runs} scores, the oldest of {oldest}; to measure all anew remove {folder}"


def _row(scores: list[float]) -> dict[str, Any]:
    mean, spread = mean_and_spread([100 * score for score in scores])
    return {"points": mean, "spread": spread, "seeds": ", ".join(f"{100 * score:.1f}" for score in scores)}
