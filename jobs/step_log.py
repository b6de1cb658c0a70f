"""The journal of a training run: one JSON line an optimizer step, which the driver also hands to MLflow, and a
printed line now and then."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from jobs.batch import Batch
from jobs.run_board import WorkerBoard

T = TypeVar("T")


class StepLog:
    """Counts and times the steps of one rank; the first rank writes and posts them.

    Args:
        board: where lines, figures and progress go.
        timed_out: (epoch, sample id) of views whose decoding took too long before a restart.
    """

    def __init__(
        self,
        *,
        start_step: int,
        total_steps: int,
        global_batch: int,
        every: int,
        trace: bool,
        board: WorkerBoard,
        timed_out: Iterable[tuple[int, str]] = (),
    ) -> None:
        self.step = start_step
        self._total_steps, self._global_batch, self._every, self._trace = total_steps, global_batch, every, trace
        self._board = board
        self._lines: list[str] = []
        self._step_started = time.perf_counter()
        self._waited_seconds = 0.0
        self.timed_out: list[tuple[int, str]] = list(timed_out)

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; the time that it takes counts as waiting for data.

        Raises:
            RuntimeError: the stream ended before the last step.
        """
        started = time.perf_counter()
        batch = next(batches, None)
        self._waited_seconds += time.perf_counter() - started
        if batch is None:
            raise RuntimeError(f"step {self.step}: the stream of batches ended before the last step")
        return batch

    def record(self, loss: float, learning_rate: float, consumed: Sequence[Batch], *, failed_views: int) -> None:
        """Close a step: journal line, printed line, metrics. All ranks call it with the same ``failed_views``."""
        seconds = time.perf_counter() - self._step_started
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
                (failure.epoch, failure.sample_id) for failure in failures if failure.reason == "timeout"
            ]
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
        if self.step % self._every == 0 or self.step == self._total_steps:
            line = self._line(figures, seconds)
        self._board.post(line, self.step, figures)

    def _line(self, figures: dict[str, Any], seconds: float) -> str:
        return (
            f"step {self.step}/{self._total_steps}  loss {figures['loss']:.4f}  "
            f"learning rate {figures['learning_rate']:.2e}  {figures['clips_per_second']:.1f} clips/s  "
            f"waited for data {figures['data_wait_seconds'] / seconds:.0%}  memory {_memory_gib():.2f} GiB"
        )


def gather_in_stream_order(mine: Sequence[Sequence[T]]) -> list[T]:
    """All ranks' items of one global batch: micro-batch 0 of rank 0, of rank 1, ..., then micro-batch 1 of rank 0."""
    everyone: list[Sequence[Sequence[T]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    dealt = zip(*everyone, strict=True)
    return list(chain.from_iterable(chain.from_iterable(dealt)))


def _memory_gib() -> float:
    """Peak memory: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
