"""Small tensors on a device, without a wait for the device.

`tensor.to("cuda")` and `torch.tensor(values, device="cuda")` copy from pageable memory, and return when all that the
device was given before is done. In a training step that leaves the device idle until the host has caught up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on the device (None: where it is), from page-locked memory where that is a GPU."""
    if device is None:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")  # to the host: the values must have arrived


def constants(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A few numbers as a tensor ``[N]``: filled in on the device, so that nothing is copied."""
    return torch.cat([torch.full((1,), value, dtype=dtype, device=device) for value in values])
