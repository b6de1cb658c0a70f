"""Image models against the public code (hiera-transformer) and `transformers`: seconds, ratios, memory.

Pretraining of Base at mask ratio 0.6 and inference of Base and Large, 224 px. All run in one process with the same
weights, input and mask, alternating, so that other load on the machine affects all; medians of the turns. Peak memory
of the pretraining step is measured in a new process each.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HieraConfig, HieraForImageClassification, HieraForPreTraining

from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import keep_smallest
from hiera_video.weights.checkpoint_files import official_state_dict
from tests.benchmarks.bench_model import (
    THREADS,
    Step,
    autocast,
    inference_step,
    interleaved_seconds,
    resident_peak_gibibytes,
    training_step,
)
from tests.support.huggingface import huggingface_state_dict
from tests.support.official import official_model

BATCH, MASK_RATIO, SIDE = 4, 0.6, 224
PEERS = ("official", "transformers")
WIDTHS = {
    "base": {"depths": (2, 3, 16, 3), "embed_dim": 96, "num_heads": (1, 2, 4, 8)},
    "large": {"depths": (2, 6, 36, 4), "embed_dim": 144, "num_heads": (2, 4, 8, 16)},
}
DECODER = {"decoder_depth": 8, "decoder_hidden_size": 512, "decoder_num_heads": 16}
# Of each kind of step: our seconds must be so many times less than each peer's.
GOALS = {
    "pretrain base float32": 1.5,
    "pretrain base bfloat16": 2.0,
    "inference base float32": 1.3,
    "inference base bfloat16": 1.3,
    "inference large float32": 1.3,
    "inference large bfloat16": 1.3,
}
MEMORY_GOAL = 0.6


def run(quick: bool) -> dict[str, Any]:
    """The table of ratios; ``quick`` shrinks the picture and the depth and only checks that everything runs."""
    logging.getLogger("hiera_video").setLevel(logging.ERROR)
    torch.set_num_threads(THREADS)
    load_before = os.getloadavg()[0]
    figures: dict[str, Any] = {"threads": THREADS, "batch": BATCH, "load_average_before": round(load_before, 2)}
    turns = 1 if quick else 5
    for size in WIDTHS:
        steps = inference_steps(size, quick) | (pretraining_steps(size, quick) if size == "base" else {})
        values = {name: float(step()) for name, step in steps.items()}
        figures |= _rows(interleaved_seconds(steps, turns))
        ours = f"ours, {'pretrain' if size == 'base' else 'inference'} {size} float32"
        for peer in PEERS:
            theirs = values[ours.replace("ours", peer)]
            figures[f"{size}: float32 value of {peer} apart"] = abs(values[ours] - theirs) / abs(theirs)
    figures["peak memory of the float32 pretraining step, GiB"] = memory_row(quick)
    return figures


def _rows(seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """A row for every kind of step: seconds of all three, and the ratios."""
    rows = {}
    for what in dict.fromkeys(name.partition(", ")[2] for name in seconds):
        row: dict[str, Any] = {f"{who}_seconds": round(seconds[f"{who}, {what}"], 3) for who in ("ours", *PEERS)}
        row |= {f"over {peer}": round(seconds[f"{peer}, {what}"] / seconds[f"ours, {what}"], 2) for peer in PEERS}
        rows[what] = row | {"goal": GOALS[what]}
    return rows


def pretraining_steps(size: str, quick: bool) -> dict[str, Step]:
    """Forward and backward passes of the three, by name, in both precisions."""
    side = _side(quick)
    pixels = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    models = {who: autoencoder(who, size, quick) for who in ("ours", *PEERS)}
    own = models["ours"]
    models["official"].load_state_dict(official_state_dict(own))
    models["transformers"].load_state_dict(huggingface_state_dict(own))
    noise = torch.rand(BATCH, own.num_mask_units, generator=torch.Generator().manual_seed(1))
    steps = {
        f"{who}, pretrain {size} float32": _pretraining(who, model, pixels, noise) for who, model in models.items()
    }
    return steps | {name.replace("float32", "bfloat16"): autocast(step) for name, step in steps.items()}


def _pretraining(who: str, model: nn.Module, pixels: Tensor, noise: Tensor) -> Step:
    """Every code's own way to be given the mask."""
    mask = keep_smallest(noise, int(noise.shape[1] * (1 - MASK_RATIO)))
    losses = {
        "ours": lambda m: m(pixels, keep_mask=mask).loss,
        "official": lambda m: m(pixels, mask=mask)[0],
        "transformers": lambda m: m(pixels, noise=noise).loss,
    }
    return training_step(model, losses[who])


def inference_steps(size: str, quick: bool) -> dict[str, Step]:
    """Forward passes of the three classifiers without gradients, by name, in both precisions."""
    side = _side(quick)
    pixels = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    own = create_model(f"hiera_{size}_224", **_ours(size, quick)).eval()
    public = official_model(f"hiera_{size}_224", **_ours(size, quick)).eval()
    public.load_state_dict(official_state_dict(own))
    public.head.act_func = nn.Identity()  # logits, as the others give them, instead of its softmax
    hugging = HieraForImageClassification(HieraConfig(**_theirs(size, quick), num_labels=1000)).eval()
    hugging.load_state_dict(huggingface_state_dict(own))
    models = {"ours": own, "official": public, "transformers": _Logits(hugging)}
    steps = {f"{who}, inference {size} float32": inference_step(model, pixels) for who, model in models.items()}
    return steps | {name.replace("float32", "bfloat16"): autocast(step) for name, step in steps.items()}


class _Logits(nn.Module):
    """A classifier of `transformers` that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels).logits
        return logits


def autoencoder(who: str, size: str, quick: bool) -> nn.Module:
    """One of the three masked autoencoders, with weights of its own; without drop path, which each draws otherwise."""
    if who == "transformers":
        config = HieraConfig(**_theirs(size, quick), **DECODER, num_query_pool=2, mask_ratio=MASK_RATIO)
        return HieraForPreTraining(config).train()
    name, options = f"mae_hiera_{size}_224", _ours(size, quick)
    model = create_model(name, **options) if who == "ours" else official_model(name, **options)
    return model.train()


def memory_row(quick: bool) -> dict[str, float]:
    """Peak resident memory of two steps, each code in its own process; the interpreter and torch count in all."""
    peaks = {who: _measured_elsewhere(who, quick) for who in ("ours", *PEERS)}
    row = {who: round(peak, 2) for who, peak in peaks.items()}
    return row | {f"of {peer}": round(peaks["ours"] / peaks[peer], 3) for peer in PEERS} | {"goal_at_most": MEMORY_GOAL}


def _measured_elsewhere(who: str, quick: bool) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.bench_image_model", who, *(["--quick"] if quick else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def peak_gibibytes(who: str, quick: bool) -> float:
    """Two pretraining steps of Base here, then this process's peak resident memory, GiB."""
    torch.set_num_threads(THREADS)
    side = _side(quick)
    pixels, noise = torch.randn(BATCH, 3, side, side), torch.rand(BATCH, (side // 32) ** 2)
    step = _pretraining(who, autoencoder(who, "base", quick), pixels, noise)
    step()
    step()
    return resident_peak_gibibytes()


def _side(quick: bool) -> int:
    return 96 if quick else SIDE


def _ours(size: str, quick: bool) -> dict[str, Any]:
    depths = (1, 1, 2, 1) if quick else WIDTHS[size]["depths"]
    return {"input_size": (_side(quick),) * 2, "stages": depths}


def _theirs(size: str, quick: bool) -> dict[str, Any]:
    return {
        **WIDTHS[size],
        "image_size": [_side(quick)] * 2,
        "depths": _ours(size, quick)["stages"],
        "drop_path_rate": 0.0,
    }


if __name__ == "__main__":
    print(peak_gibibytes(sys.argv[1], "--quick" in sys.argv))
