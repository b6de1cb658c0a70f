"""A micro-batch that does not fit into a GPU: what was measured, and the next size that should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

GIB = 2**30
USABLE = 0.95  # the rest goes to fragments and to libraries' own buffers


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one GPU."""

    total: int
    resident: int
    """Allocated between steps: weights, gradients, optimizer state."""
    peak: int
    """Allocated at most so far."""

    @classmethod
    def of(cls, device: torch.device, resident: int) -> Self:
        """As measured now."""
        return cls(torch.cuda.mem_get_info(device)[1], resident, torch.cuda.max_memory_allocated(device))


def resident_bytes(device: torch.device) -> int:
    """What is allocated now; 0 without a GPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def does_not_fit(micro_batch: int, fewest: int, memory: DeviceMemory) -> str:
    """Why training cannot continue, and the remedy.

    Args:
        fewest: the smallest micro-batch that the phase permits.
    """
    measured = (
        f"micro_batch={micro_batch}: does not fit into a GPU of {memory.total / GIB:.1f} GiB (allocated at most "
        f"{memory.peak / GIB:.1f} GiB, {memory.resident / GIB:.1f} GiB of it weights and optimizer state)"
    )
    smaller = next_size(micro_batch, fewest, memory)
    if smaller is None:
        return f"{measured}; use activation_checkpointing=true or zero_stage=3, and another output"
    return f"{measured}; use micro_batch={smaller} and another output: other micro-batches draw otherwise"


def next_size(micro_batch: int, fewest: int, memory: DeviceMemory) -> int | None:
    """The largest smaller micro-batch that should fit; its divisors alone keep the permitted numbers of workers."""
    usable = USABLE * memory.total - memory.resident
    # One view takes at least this, or all would have fitted.
    bytes_per_view = max(usable, memory.peak - memory.resident) / micro_batch
    sizes = [size for size in range(fewest, micro_batch) if micro_batch % size == 0]
    return max((size for size in sizes if size * bytes_per_view <= usable), default=None)
