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


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835, 60),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA H200 NVL", 835, 60),
        ("NVIDIA GH200 480GB", 989, 67),
        ("NVIDIA GH200 144G HBM3e", 989, 67),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA A100-SXM4-40GB", 312, 19.5),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("A100-SXM-80GB", 312, 19.5),
        ("NVIDIA A100-PCIE-40GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40", 181, 90.5),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA A10G", 70, 35),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("Tesla V100S-PCIE-32GB", None, 16.4),
        ("Tesla T4", None, 8.1),
        ("NVIDIA GeForce RTX 4090", 165, 82.6),
        ("NVIDIA RTX A1000", None, None),
        ("NVIDIA RTX A1000 Laptop GPU", None, None),
        ("NVIDIA RTX 4000 Ada Generation", None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 3090 Ti", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA A100X", None, None),
        ("NVIDIA A10M", None, None),
        ("NVIDIA H20", None, None),
        ("NVIDIA H800", None, None),
        ("NVIDIA GB200", None, None),
        ("NVIDIA T400 4GB", None, None),
        ("NVIDIA T4G", None, None),
        ("NVIDIA A40", None, None),
        ("Quadro L4", None, None),
    ],
)
def test_the_whole_name_counts(name: str, bf16: float | None, fp32: float | None) -> None:
    assert (peak_of(name, "bf16"), peak_of(name, "fp32")) == (bf16, fp32)


def test_an_unknown_gpu_has_no_peak_and_a_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"cuda:0": "NVIDIA RTX A1000", "cuda:1": "NVIDIA A100-SXM4-80GB"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[str(device)])
    assert peak_tflops(torch.device("cuda:1"), "bf16") == 312
    assert not caplog.messages
    assert peak_tflops(torch.device("cuda:0"), "bf16") is None
    assert ["NVIDIA RTX A1000: its peak in bf16 is not known" in line for line in caplog.messages] == [True]


def test_what_is_not_known_is_not_guessed() -> None:
    assert peak_of("NVIDIA H100 PCIe", "bf16") == 756
    assert peak_of("Some other card", "bf16") is None
    assert peak_of("Tesla V100-SXM2-16GB", "bf16") is None  # has no bfloat16
    assert utilisation(10.0, None, 1, 100.0) is None
    assert utilisation(10.0, 100, 1, None) is None


def test_a_cpu_is_measured() -> None:
    assert 1e-4 < peak_tflops(torch.device("cpu"), "fp32") < 100
