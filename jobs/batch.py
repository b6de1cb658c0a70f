"""One micro-batch as the training loop sees it, and the seeds that its random draws come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor


def digest(*parts: object) -> int:
    """A non-negative 63-bit number from the parts: the same on every machine and in every process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


class Failure(NamedTuple):
    """A view that could not be decoded."""

    epoch: int
    sample_id: str
    reason: str
    replaced_by: str
    """Sample id of the view that stands in."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: B views of T frames, and all that its random draws may depend on."""

    frames: Tensor
    """uint8 ``[B, T, H, W, 3]``."""
    labels: Tensor
    """int64 ``[B]``, -1 where there is none."""
    sample_ids: list[str]
    epochs: list[int]
    position: int
    """Stream position of the first view."""
    seed: int
    step: int
    index: int
    """Number of the micro-batch within its global batch."""
    failures: list[Failure] = field(default_factory=list)
    """Views that could not be decoded."""

    def sample_seeds(self, purpose: str) -> list[int]:
        """One seed per sample, a function of (run seed, purpose, epoch, sample id)."""
        samples = zip(self.epochs, self.sample_ids, strict=True)
        return [digest(self.seed, purpose, epoch, sample) for epoch, sample in samples]

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator, a function of (run seed, purpose, step, micro-batch)."""
        return torch.Generator().manual_seed(digest(self.seed, purpose, self.step, self.index))


def batch_from_columns(columns: Mapping[str, Any], *, seed: int, step: int, index: int, device: torch.device) -> Batch:
    """A micro-batch of the training stream as a `Batch` on the device."""
    views = zip(columns["epoch"], columns["sample_id"], columns["failure"], columns["replaced_by"], strict=True)
    return Batch(
        frames=torch.from_numpy(columns["video"].copy()).to(device, non_blocking=True),  # Arrow memory is read-only
        labels=torch.from_numpy(columns["label"].copy()).to(device, non_blocking=True),
        sample_ids=list(columns["sample_id"]),
        epochs=columns["epoch"].tolist(),
        position=int(columns["position"][0]),
        seed=seed,
        step=step,
        index=index,
        failures=[Failure(int(epoch), *texts) for epoch, *texts in views if texts[1]],
    )
