"""Model FLOP utilisation: the arithmetic that the model needs by its shapes, over what the devices could do."""

from __future__ import annotations

import logging
import re
import time
from typing import NamedTuple

import torch

logger = logging.getLogger(__name__)

BACKWARD_AND_FORWARD = 3  # the backward pass takes two products for each one of the forward pass
FLOPS_PER_MULTIPLY_ADD = 2
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
PRODUCTS = 6  # the first ones warm up
LONG_SECONDS = 0.5


class Peak(NamedTuple):
    """Dense TFLOP/s of a device, without sparsity."""

    bf16: float
    fp32: float


# NVIDIA's data sheets, by the whole name that CUDA reports without its brand. float32 as PyTorch multiplies by default:
# without tensor cores. 0: has no bfloat16.
PEAKS = {
    r"H100 (80GB HBM3|SXM5?( 80GB)?)": Peak(989, 67),
    r"H100 PCIe": Peak(756, 51),
    r"H100 NVL": Peak(835, 60),
    r"H200": Peak(989, 67),
    r"H200 NVL": Peak(835, 60),
    r"B200": Peak(2250, 75),
    r"GH200 \w+( HBM3e?)?": Peak(989, 67),
    r"A100[- ](SXM4?|PCIE)[- ](40|80)GB": Peak(312, 19.5),
    r"A100 80GB PCIe": Peak(312, 19.5),
    r"L40S": Peak(362, 91.6),
    r"L40": Peak(181, 90.5),
    r"L4": Peak(121, 30.3),
    r"A10G": Peak(70, 35),
    r"A10": Peak(125, 31.2),
    r"V100-SXM[23]-(16|32)GB": Peak(0, 15.7),
    r"V100-PCIE-(16|32)GB": Peak(0, 14),
    r"V100S-PCIE-32GB": Peak(0, 16.4),
    r"T4": Peak(0, 8.1),
    r"RTX 4090": Peak(165, 82.6),
    r"RTX 3090": Peak(71, 35.6),
}
BRANDS = r"(NVIDIA |Tesla |GeForce )*"


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """The peak of a device at a precision: of a GPU that of its data sheet, None if unknown; of a CPU measured here."""
    if device.type != "cuda":
        return measured_tflops(device, precision)
    name = torch.cuda.get_device_name(device)
    peak = peak_of(name, precision)
    if peak is None:
        logger.warning(
            "%s: its peak in %s is not known, so no MFU is reported; add its data sheet's figure to "
            "jobs.training.mfu.PEAKS",
            name,
            precision,
        )
    return peak


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
    """The peak of a GPU by its name; None if it is not listed, also a variant or a part (MIG) of one."""
    found = next((peak for known, peak in PEAKS.items() if re.fullmatch(BRANDS + known, name, re.IGNORECASE)), None)
    return (found.bf16 if precision == "bf16" else found.fp32) or None if found else None


def utilisation(views_per_second: float, multiply_adds: int | None, workers: int, peak: float | None) -> float | None:
    """Share of all workers' peak that the model's own arithmetic takes; recomputed activations do not count.

    ``multiply_adds`` are of all that a step does with one view, ``peak`` is in TFLOP/s of one worker's device.
    """
    if not multiply_adds or not peak:
        return None
    flops = views_per_second * multiply_adds * FLOPS_PER_MULTIPLY_ADD
    return flops / (workers * peak * 1e12)
