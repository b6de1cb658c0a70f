"""Model FLOP utilisation."""

from __future__ import annotations

import pytest
import torch

from hiera_video.analysis.flops import complexity
from jobs.training.mfu import peak_of, peak_tflops, utilisation


def test_a_known_device_at_its_peak_is_one() -> None:
    macs = complexity("hiera_base_16x224").multiply_adds
    assert macs == pytest.approx(102e9, rel=0.01)
    views_per_second = 8 * 989e12 / (6 * macs)
    peak = peak_of("NVIDIA H100 80GB HBM3", "bf16")
    assert utilisation(views_per_second, 3 * macs, 8, peak) == pytest.approx(1.0)
    assert utilisation(views_per_second, 3 * macs, 16, peak) == pytest.approx(0.5)


def test_what_is_not_known_is_not_guessed() -> None:
    assert peak_of("NVIDIA H100 PCIe", "bf16") == 756
    assert peak_of("Some other card", "bf16") is None
    assert peak_of("Tesla V100-SXM2-16GB", "bf16") is None  # has no bfloat16
    assert utilisation(10.0, None, 1, 100.0) is None
    assert utilisation(10.0, 100, 1, None) is None


def test_an_unknown_device_is_measured() -> None:
    assert 1e-4 < peak_tflops(torch.device("cpu"), "fp32") < 100
