"""The journal of a training run: one JSON line an optimizer step, which the driver also sends to MLflow, and a
printed line every few steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

from jobs.supervision.coordinator import CoordinatorClient
from jobs.training.agreement import gathered
from jobs.training.mfu import utilisation
from jobs.training.micro_batch import MicroBatch

T = TypeVar("T")
MAY_NOT_REPEAT = ("timeout", "crashed", "out_of_memory", "missing")
"""Failures that a resumed run might not meet: they depend on load, memory, an object that is missing for a while."""


class Journal:
    """Counts and times the steps of one rank; the first rank writes and posts them.

    Args:
        multiply_adds: of all that a step does with one view; None when unknown.
        peak: TFLOP/s of one rank's device; None when unknown.
        timed_out: (epoch, sample id) of views that failed before a restart, for a reason that may not repeat; those of
            a pass over the set that has ended are dropped.
    """

    def __init__(
        self,
        *,
        start_step: int,
        total_steps: int,
        global_batch: int,
        every: int,
        trace: bool,
        coordinator: CoordinatorClient,
        multiply_adds: int | None = None,
        peak: float | None = None,
        timed_out: Iterable[tuple[int, str]] = (),
    ) -> None:
        self.step = start_step
        self._total_steps, self._global_batch, self._every, self._trace = total_steps, global_batch, every, trace
        self._coordinator = coordinator
        self._multiply_adds, self._peak = multiply_adds, peak
        self._lines: list[str] = []
        self._step_started = self._began = time.perf_counter()
        self._first_step = start_step
        self._waited_seconds = 0.0
        self.timed_out: list[tuple[int, str]] = list(timed_out)

    def next_batch(self, batches: Iterator[MicroBatch]) -> MicroBatch:
        """The next micro-batch; the time that it takes counts as waiting for data."""
        started = time.perf_counter()
        batch = next(batches, None)
        self._waited_seconds += time.perf_counter() - started
        if batch is None:
            raise RuntimeError(f"step {self.step}: the stream of batches ended before the last step")
        return batch

    def record(
        self,
        loss: float,
        learning_rate: float,
        consumed: Sequence[MicroBatch],
        *,
        failed_views: int,
        validation: Mapping[str, Any] | None = None,
    ) -> None:
        """Close a step: journal line, printed line, metrics. All ranks call it with the same ``failed_views``.

        ``validation`` are figures measured within the step; their ``seconds`` do not count as the step's.
        """
        seconds = time.perf_counter() - self._step_started - (validation or {}).get("seconds", 0.0)
        self.step += 1
        figures: dict[str, Any] = {
            "step": self.step,
            "epoch": consumed[0].epochs[0],
            "position": self.step * self._global_batch,
            "loss": loss,
            "learning_rate": learning_rate,
            "clips_per_second": self._global_batch / seconds,
            "data_wait_seconds": self._waited_seconds,
            "unix_seconds": time.time(),
        }
        if failed_views:
            failures = gather_in_stream_order([batch.failures for batch in consumed])
            figures["failures"] = [failure._asdict() for failure in failures]
            self.timed_out += [
                (failure.epoch, failure.sample_id) for failure in failures if failure.reason in MAY_NOT_REPEAT
            ]
        reached = consumed[-1].epochs[-1]  # no view of an earlier pass comes again
        self.timed_out = [(epoch, sample) for epoch, sample in self.timed_out if epoch >= reached]
        used = utilisation(figures["clips_per_second"], self._multiply_adds, dist.get_world_size(), self._peak)
        if used is not None:
            figures["model_flop_utilisation"] = used
        if validation:
            figures["validation"] = dict(validation)
        if self._trace:
            figures["sample_ids"] = gather_in_stream_order([batch.sample_ids for batch in consumed])
        if dist.get_rank() == 0:
            self._write(figures, seconds)
        self._step_started, self._waited_seconds = time.perf_counter(), 0.0

    def take_lines(self) -> str:
        """The journal lines since the last call."""
        lines, self._lines = self._lines, []
        return "".join(lines)

    def _write(self, figures: dict[str, Any], seconds: float) -> None:
        self._lines.append(json.dumps(figures) + "\n")
        line = ""
        if "validation" in figures or self.step % self._every == 0 or self.step == self._total_steps:
            line = self._line(figures, seconds)
        self._coordinator.post(line, self.step, figures)

    def _line(self, figures: dict[str, Any], seconds: float) -> str:
        used = figures.get("model_flop_utilisation")
        return (
            f"step {self.step}/{self._total_steps}  loss {figures['loss']:.4f}  "
            f"learning rate {figures['learning_rate']:.2e}  {figures['clips_per_second']:.1f} clips/s  "
            f"waited for data {figures['data_wait_seconds'] / seconds:.0%}  "
            f"MFU {'unknown' if used is None else f'{used:.0%}'}  memory {_memory_gib():.2f} GiB"
            f"{self._remaining()}{_validation_text(figures.get('validation', {}))}"
        )

    def _remaining(self) -> str:
        """How long the rest takes at the speed since the workers started."""
        seconds = (time.perf_counter() - self._began) / (self.step - self._first_step)
        minutes = (self._total_steps - self.step) * seconds / 60
        return f"  {minutes / 60:.1f} h left" if minutes > 90 else f"  {minutes:.0f} min left"


def gather_in_stream_order(mine: Sequence[Sequence[T]]) -> list[T]:
    """All ranks' items of one global batch: micro-batch 0 of rank 0, of rank 1, ..., then micro-batch 1 of rank 0."""
    dealt = zip(*gathered(mine), strict=True)
    return list(chain.from_iterable(chain.from_iterable(dealt)))


def _validation_text(validation: Mapping[str, Any]) -> str:
    """The validation figures, for the printed line."""
    figures = {key: value for key, value in validation.items() if key != "seconds" and isinstance(value, float)}
    text = "  ".join(f"{key} {value:.4f}" for key, value in figures.items())
    return f"  validation: {text}" if text else ""


def _memory_gib() -> float:
    """Peak memory of the GPU where there is one, else what this process holds for itself now.

    Not its whole resident size: the pages of Ray's object store that it has read count as resident and only grow.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**30
