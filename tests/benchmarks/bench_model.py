"""hiera_video against the public code (hiera-transformer), Base 16x224, batch 2: seconds, ratios, memory.

Both run in one process with the same weights, input and mask, alternating (A B A B ...), so that other load on the
machine affects both; medians of the turns. Peak memory is measured in a new process each. The figures include the load
average: above about half a core of other work the ratios still hold roughly, the seconds do not.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import random_keep_mask
from hiera_video.weights.checkpoint_files import official_state_dict
from tests.support.official import official_model

PRESET, THREADS, BATCH, MASK_RATIO = "base_16x224", 2, 2, 0.9
SMALL = {"input_size": (16, 96, 96), "stages": (1, 1, 2, 1)}
Step = Callable[[], Tensor]

# Each row: our step, the public code's step, the goal for the ratio.
ROWS = {
    "pretrain float32": ("full float32", "official float32", 2.0),
    "pretrain bfloat16": ("full bfloat16", "official bfloat16", 3.0),
    "pretrain float32, decoder subset 50 %": ("subset float32", "official float32", 3.3),
    "pretrain float32, decoder cross 50 %": ("cross float32", "official float32", 4.5),
    "inference float32": ("classifier float32", "official classifier float32", 1.3),
    "inference bfloat16": ("classifier bfloat16", "official classifier bfloat16", 2.0),
}


def run(quick: bool) -> dict[str, Any]:
    """The table of ratios; ``quick`` shrinks the model and only checks that everything runs."""
    logging.getLogger("hiera_video").setLevel(logging.ERROR)
    torch.set_num_threads(THREADS)
    load_before = os.getloadavg()[0]
    steps = pretraining_steps(quick) | inference_steps(quick)
    losses = {name: float(step()) for name, step in steps.items()}
    seconds = interleaved_seconds(steps, turns=1 if quick else 3)
    figures: dict[str, Any] = {
        "threads": THREADS,
        "batch": BATCH,
        "load_average_before": round(load_before, 2),
        "disturbed": "yes: other processes are running, repeat on an idle machine" if load_before > 0.5 else "no",
    }
    for row, (ours, official, goal) in ROWS.items():
        ratio = seconds[official] / seconds[ours]
        figures[row] = {
            "ours_seconds": round(seconds[ours], 3),
            "official_seconds": round(seconds[official], 3),
            "ratio": round(ratio, 2),
            "goal": goal,
        }
    difference = abs(losses["full float32"] - losses["official float32"]) / losses["official float32"]
    figures["loss_difference_float32"] = difference
    figures["peak memory of the float32 pretraining step"] = memory_row(quick)
    figures["pretrain clips_per_second"] = round(BATCH / seconds["full float32"], 3)
    return figures


def pretraining_steps(quick: bool) -> dict[str, Step]:
    """Forward and backward passes of both, by name."""
    options = SMALL if quick else {}
    ratio = 0.8 if quick else MASK_RATIO
    models = {kind: ours(kind, options) for kind in ("full", "subset", "cross")}
    public = official(models["full"], options)
    pixels = torch.randn(BATCH, 3, *models["full"].config.input_size, generator=torch.Generator().manual_seed(0))
    keep_mask = random_keep_mask(BATCH, models["full"].num_mask_units, ratio, seeds=range(BATCH))
    steps = {
        f"{kind} float32": training_step(model, lambda m: m(pixels, keep_mask=keep_mask).loss)
        for kind, model in models.items()
    }
    steps["full bfloat16"] = autocast(steps["full float32"])
    steps["official float32"] = training_step(public, lambda m: m(pixels, mask=keep_mask)[0])
    steps["official bfloat16"] = autocast(steps["official float32"])
    return steps


def inference_steps(quick: bool) -> dict[str, Step]:
    """Forward passes of both classifiers without gradients, by name."""
    options = SMALL if quick else {}
    classifier = create_model(f"hiera_{PRESET}", **options).eval()
    public = official_model(f"hiera_{PRESET}", **options).eval()
    public.load_state_dict(official_state_dict(classifier))
    pixels = torch.randn(BATCH, 3, *classifier.config.input_size, generator=torch.Generator().manual_seed(0))
    steps: dict[str, Step] = {}
    for prefix, model in (("classifier", classifier), ("official classifier", public)):
        steps[f"{prefix} float32"] = inference_step(model, pixels)
        steps[f"{prefix} bfloat16"] = autocast(steps[f"{prefix} float32"])
    return steps


def ours(decoder: str, options: dict[str, Any]) -> nn.Module:
    """Our masked autoencoder with one of the decoders."""
    return create_model(f"mae_hiera_{PRESET}", decoder=decoder, mask_ratio=0.5, **options)


def official(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    """The public masked autoencoder with our weights."""
    public = official_model(f"mae_hiera_{PRESET}", **options)
    public.load_state_dict(official_state_dict(model))
    return public


def training_step(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Step:
    """Forward, backward, and the gradients freed."""

    def step() -> Tensor:
        loss = loss_of(model)
        with torch.autocast("cpu", enabled=False):
            loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def inference_step(model: nn.Module, pixels: Tensor) -> Step:
    """One forward pass, which returns its first logit."""

    def step() -> Tensor:
        with torch.inference_mode():
            return model(pixels)[0, 0]

    return step


def autocast(step: Step) -> Step:
    """The same step under bfloat16 autocast."""

    def mixed() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    return mixed


def interleaved_seconds(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """Median seconds of each step, all steps once a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory_row(quick: bool) -> dict[str, float]:
    """Peak resident memory of two steps, each code in its own process; the interpreter and torch count in both."""
    gibibytes = {who: _measured_elsewhere(who, quick) for who in ("ours", "official")}
    ratio = round(gibibytes["ours"] / gibibytes["official"], 3)
    return {**{f"{who}_gib": round(value, 2) for who, value in gibibytes.items()}, "ratio": ratio, "goal_at_most": 0.4}


def _measured_elsewhere(who: str, quick: bool) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.bench_model", "--memory", who, *(["--quick"] if quick else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def peak_gibibytes(who: str, quick: bool) -> float:
    """Two pretraining steps here, then this process's peak resident memory, GiB."""
    torch.set_num_threads(THREADS)
    options = SMALL if quick else {}
    name, ratio = f"mae_hiera_{PRESET}", 0.8 if quick else MASK_RATIO
    model = official_model(name, **options) if who == "official" else ours("full", options)
    pixels = torch.randn(BATCH, 3, *(SMALL["input_size"] if quick else (16, 224, 224)))
    loss_of = (lambda m: m(pixels, mask_ratio=ratio)[0]) if who == "official" else (lambda m: m(pixels, ratio).loss)
    step = training_step(model, loss_of)
    step()
    step()
    return resident_peak_gibibytes()


def resident_peak_gibibytes() -> float:
    """This process's peak resident memory; not ru_maxrss, a new process begins with its parent's."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**20


def main() -> None:
    """Run alone: print the table, or with ``--memory WHO`` one process's peak."""
    quick = "--quick" in sys.argv
    if "--memory" in sys.argv:
        print(peak_gibibytes(sys.argv[sys.argv.index("--memory") + 1], quick))
    else:
        print(json.dumps(run(quick), indent=1))


if __name__ == "__main__":
    main()
