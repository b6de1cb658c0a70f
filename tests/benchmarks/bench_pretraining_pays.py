"""Does pretraining pay? Top-1 with ten labels a class, from 0.9-masked pretraining and from scratch, over three seeds.

The same model of 72 mask units, fine-tuned for the same number of steps on the same labelled videos. Everything is kept
under build/bench_pretraining_pays: the same command goes on where it was cut off. Runs only by its name, because it
takes half an hour on two cores: 500 steps of pretraining are what this leaves room for.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.motion_videos import MOTION_CLASSES
from tests.benchmarks.motion_learning import Task, clips_of, finetune_config, finetuned_top1, pretrain, pretrain_config

FOLDER = Path(__file__).parents[2] / "build" / "bench_pretraining_pays"
# Between an appearance that eighty videos suffice for (0.2) and one that they do not (0.5); see the README.
FULL = Task(difficulty=0.35, unlabelled=1600, labels_per_class=10, held_out=400, pretrain_steps=500, finetune_steps=120)
SMALL = Task(difficulty=0.5, unlabelled=64, labels_per_class=2, held_out=32, pretrain_steps=8, finetune_steps=4)
SEEDS = (0, 1, 2)
WAYS = ("pretrained", "from scratch")
POINTS_DUE = 10.0
CORES = 2


def run(quick: bool) -> dict[str, Any]:
    """Mean and spread of both ways, in points of top-1, and what pretraining adds."""
    task, seeds = (SMALL, SEEDS[:2]) if quick else (FULL, SEEDS)
    return compared(task, seeds, FOLDER / ("quick" if quick else "full"), processes=CORES)


def compared(task: Task, seeds: tuple[int, ...], folder: Path, processes: int) -> dict[str, Any]:
    """The benchmark on any task; processes of one thread each."""
    for name, count, seed in _sets(task):
        clips_of(task, name, count, seed, folder)
    runs = [(way, seed) for way in WAYS for seed in seeds]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        scores = pool.map(top1_of, *zip(*[(task, folder, way, seed) for way, seed in runs], strict=True))
        found = dict(zip(runs, scores, strict=True))
    rows = {way: _row([found[way, seed] for seed in seeds]) for way in WAYS}
    gains = [100 * (found["pretrained", seed] - found["from scratch", seed]) for seed in seeds]
    gain = float(np.mean(gains))
    return {
        **rows,
        "gain": {"points": gain, "spread": _spread(gains), "due": POINTS_DUE, "passed": gain >= POINTS_DUE},
        "chance": 100 / len(MOTION_CLASSES),
        "task": str(task),
    }


def top1_of(task: Task, folder: Path, way: str, seed: int) -> float:
    """One seed of one way, in a process of its own."""
    torch.set_num_threads(1)
    unlabelled, labelled, held_out = (clips_of(task, *which, folder) for which in _sets(task))
    init = None
    if way == "pretrained":
        init = folder / f"pretrained-{task.pretrain_steps}-{seed}.safetensors"
        pretrain(pretrain_config(task, seed), unlabelled[0], init)
    steps = f"{task.pretrain_steps if init else 0}-{task.finetune_steps}"
    result = folder / f"top1-{steps}-{seed}.json"
    return finetuned_top1(finetune_config(task, seed), labelled, held_out, result, init)


def _sets(task: Task) -> list[tuple[str, int, int]]:
    """Name, number of clips and seed of the three sets, which share no clip."""
    labelled = task.labels_per_class * len(MOTION_CLASSES)
    return [("unlabelled", task.unlabelled, 1), ("labelled", labelled, 2), ("held-out", task.held_out, 3)]


def _row(scores: list[float]) -> dict[str, Any]:
    return {"points": 100 * float(np.mean(scores)), "spread": _spread([100 * score for score in scores]),
            "seeds": ", ".join(f"{100 * score:.1f}" for score in scores)}  # fmt: skip


def _spread(values: list[float]) -> float:
    """Standard deviation over the seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
