"""One micro-batch as the training loop sees it, and the seeds that its random draws come from.

Legend: B views of a micro-batch, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiera_video.on_device import to_device
from pipeline.seeds import derive_seed


class Failure(NamedTuple):
    """A view that could not be decoded."""

    epoch: int
    sample_id: str
    reason: str
    replaced_by: str
    """Sample id of the view that stands in."""


@dataclass(frozen=True)
class MicroBatch:
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

    @property
    def videos(self) -> list[str]:
        """The clip that each sample shows, ``[B]``: of a view that could not be decoded, the one that stands in."""
        shown = {(failure.epoch, failure.sample_id): failure.replaced_by for failure in self.failures}
        samples = zip(self.epochs, self.sample_ids, strict=True)
        return [(shown.get((epoch, sample)) or sample).rpartition("#")[0] for epoch, sample in samples]

    def sample_seeds(self, purpose: str) -> list[int]:
        """One seed per sample, a function of (run seed, purpose, epoch, sample id)."""
        samples = zip(self.epochs, self.sample_ids, strict=True)
        return [derive_seed(self.seed, purpose, epoch, sample) for epoch, sample in samples]

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator, a function of (run seed, purpose, step, micro-batch)."""
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose, self.step, self.index))


def micro_batch_from_columns(
    columns: Mapping[str, Any], *, seed: int, step: int, index: int, device: torch.device
) -> MicroBatch:
    """A micro-batch of the training stream as a `MicroBatch` on the device, which may still be copying it."""
    views = zip(columns["epoch"], columns["sample_id"], columns["failure"], columns["replaced_by"], strict=True)
    return MicroBatch(
        frames=_to_device(columns["video"], device),
        labels=_to_device(columns["label"], device),
        sample_ids=list(columns["sample_id"]),
        epochs=columns["epoch"].tolist(),
        position=int(columns["position"][0]),
        seed=seed,
        step=step,
        index=index,
        failures=[Failure(int(epoch), *texts) for epoch, *texts in views if texts[1]],
    )


def _to_device(values: Any, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(values.copy()), device)  # Arrow memory is read-only


def one_ahead(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """The same batches; while one is in use, a thread fetches the next and copies it to the device.

    On CUDA the copies run on a second stream, in parallel with the model's kernels.
    """
    new_stream: Any = torch.cuda.Stream
    side = new_stream(device) if device.type == "cuda" else None
    thread = ThreadPoolExecutor(1, thread_name_prefix="batch-ahead")

    def fetch() -> MicroBatch | None:
        with torch.cuda.stream(side):  # without a stream: nothing
            return next(batches, None)

    try:
        pending = thread.submit(fetch)
        while (batch := pending.result()) is not None:
            if side is not None:
                _hand_over(batch, side)
            pending = thread.submit(fetch)
            yield batch
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _hand_over(batch: MicroBatch, side: Any) -> None:
    """Let the current stream wait for the copies, and the allocator know that it uses them."""
    current = torch.cuda.current_stream(batch.frames.device)
    current.wait_stream(side)
    for tensor in (batch.frames, batch.labels):
        tensor.record_stream(current)
