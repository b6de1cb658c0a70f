"""Constants are filled in, not copied, and are what `torch.tensor` makes."""

from __future__ import annotations

import pytest
import torch

from hiera_video.on_device import constants, to_device
from tests.support.fake_cuda import CUDA, FakeCuda

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_constants_are_the_numbers(dtype: torch.dtype) -> None:
    values = [19595, 38470, 7471] if dtype == torch.int32 else [1 / (255 * 0.225), 0.1, -2.0]
    assert torch.equal(constants(values, CPU, dtype), torch.tensor(values, dtype=dtype))


def test_on_the_host_nothing_is_copied() -> None:
    tensor = torch.ones(2)
    assert to_device(tensor, CPU) is to_device(tensor, None) is tensor


def test_on_a_device_nothing_waits() -> None:
    with FakeCuda() as cuda, cuda.no_waits():
        assert to_device(torch.ones(2), CUDA).device == constants([1.0, 2.0], CUDA).device == CUDA
