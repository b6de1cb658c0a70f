"""Model FLOP utilisation: the arithmetic that the model needs by its shapes, over what the devices could do."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

BACKWARD_AND_FORWARD = 3  # the backward pass takes two products for each one of the forward pass
FLOPS_PER_MULTIPLY_ADD = 2
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
PRODUCTS = 6  # the first ones warm up
LONG_SECONDS = 0.5


class Peak(NamedTuple):
    """Dense TFLOP/s of a device, without sparsity."""

    bf16: float
    fp32: float


# NVIDIA's data sheets. float32 as PyTorch multiplies by default: without tensor cores. The first name that fits counts.
PEAKS = {
    "H100 PCIe": Peak(756, 51),
    "H100": Peak(989, 67),
    "H200": Peak(989, 67),
    "B200": Peak(2250, 75),
    "GH200": Peak(989, 67),
    "A100": Peak(312, 19.5),
    "L40S": Peak(362, 91.6),
    "L4": Peak(121, 30.3),
    "A10G": Peak(70, 35),
    "A10": Peak(125, 31.2),
    "V100": Peak(0, 15.7),
    "T4": Peak(0, 8.1),
    "RTX 4090": Peak(165, 82.6),
    "RTX 3090": Peak(71, 35.6),
}


def peak_tflops(device: torch.device, precision: str) -> float:
    """The peak of a device at a precision: of its data sheet where it is a known GPU, else measured here."""
    known = peak_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return known or measured_tflops(device, precision)


def measured_tflops(device: torch.device, precision: str) -> float:
    """The best of a few large matrix products, with the threads that this process has: 0.2 s on one core of a CPU.

    One that takes long, as bfloat16 on a CPU without instructions for it, is the only one.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = _seconds_of_product(left, right)
    if seconds < LONG_SECONDS:
        seconds = min(seconds, *(_seconds_of_product(left, right) for _ in range(PRODUCTS - 1)))
    return FLOPS_PER_MULTIPLY_ADD * size**3 / seconds / 1e12


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    (left @ right)[0, 0].item()  # waits for the device
    return time.perf_counter() - started


def peak_of(name: str, precision: str) -> float | None:
    """The peak of a GPU by its name."""
    found = next((peak for part, peak in PEAKS.items() if part in name), None)
    return (found.bf16 if precision == "bf16" else found.fp32) or None if found else None


def utilisation(views_per_second: float, multiply_adds: int | None, workers: int, peak: float | None) -> float | None:
    """Share of all workers' peak that the model's own arithmetic takes; recomputed activations do not count.

    ``multiply_adds`` are of all that a step does with one view, ``peak`` is in TFLOP/s of one worker's device.
    """
    if not multiply_adds or not peak:
        return None
    flops = views_per_second * multiply_adds * FLOPS_PER_MULTIPLY_ADD
    return flops / (workers * peak * 1e12)
