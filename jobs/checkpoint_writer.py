"""When checkpoints are written, and the background thread that writes them so that training goes on meanwhile."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from jobs.checkpoint import Checkpoint, collect_checkpoints, write_checkpoint, write_journal
from jobs.lease import Lease, LeaseLostError
from pipeline import StorageError

logger = logging.getLogger(__name__)

PAUSES_SECONDS = (1.0, 4.0, 16.0)  # between the tries of one upload; each try has the storage client's own retries
LAST_PAUSE_SECONDS = 10.0


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 500
    """Optimizer steps between checkpoints; the last step always writes one."""
    every_minutes: float = 30.0
    """Longest time between checkpoints, in minutes."""
    keep: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: int = 1
    """How many of those with the lowest held-out loss are kept besides."""
    max_unsaved_minutes: float = 120.0
    """Training stops with an error when no checkpoint could be saved for so many minutes."""

    def __post_init__(self) -> None:
        for key, lowest in (("every_steps", 1), ("keep", 1), ("keep_best", 0)):
            if getattr(self, key) < lowest:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least {lowest}; use {lowest} or more")
        for key in ("every_minutes", "max_unsaved_minutes"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; it is a time in minutes")


class CheckpointWriter:
    """Writes checkpoints of one run in the background, one at a time, as long as the lease is held."""

    def __init__(self, config: CheckpointConfig, lease: Lease) -> None:
        self._config, self._lease = config, lease
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[None] | None = None
        self._unsent: Checkpoint | None = None
        self._unsent_journal: dict[int, str] = {}
        self._saved_at = time.monotonic()
        self._last_due = time.monotonic()
        self.failure = ""
        """Why training must stop: nothing could be saved for `max_unsaved_minutes`, or the lease is lost."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` optimizer steps."""
        minutes = (time.monotonic() - self._last_due) / 60
        return step % self._config.every_steps == 0 or minutes >= self._config.every_minutes

    def save(self, checkpoint: Checkpoint, journal: str) -> None:
        """Write in the background, after the one before has ended.

        Args:
            checkpoint: what to write; its tensors must not change any more.
            journal: metric lines since the checkpoint before.
        """
        self._settle()
        self._last_due = time.monotonic()
        self._unsent_journal[checkpoint.step] = journal
        self._unsent = checkpoint
        self._pending = self._executor.submit(self._write, checkpoint)

    def finish(self) -> None:
        """Wait until the last checkpoint is written, trying for `max_unsaved_minutes`; `failure` says if it is not."""
        self._settle()
        while self._unsent is not None and not self.failure:
            time.sleep(LAST_PAUSE_SECONDS)
            self._pending = self._executor.submit(self._write, self._unsent)
            self._settle()

    def _settle(self) -> None:
        """Wait for the write in progress; one that failed is told, and left to the next checkpoint."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
            self._saved_at, self._unsent = time.monotonic(), None
        except LeaseLostError as lost:
            self.failure = str(lost)
        except StorageError as error:
            logger.warning("checkpoint not saved, the next one tries again: %s", error)
            minutes = (time.monotonic() - self._saved_at) / 60
            if minutes > self._config.max_unsaved_minutes:
                self.failure = (
                    f"checkpoint.max_unsaved_minutes={self._config.max_unsaved_minutes}: no checkpoint could be saved "
                    f"for {minutes:.0f} minutes ({error}); mend the storage and start the same command again"
                )

    def _write(self, checkpoint: Checkpoint) -> None:
        for pause_seconds in PAUSES_SECONDS:
            try:
                return self._write_once(checkpoint)
            except StorageError as error:
                logger.warning("checkpoint of step %d: %s; trying again", checkpoint.step, error)
            time.sleep(pause_seconds)
        return self._write_once(checkpoint)

    def _write_once(self, checkpoint: Checkpoint) -> None:
        output = self._lease.output
        self._lease.check()
        for step, lines in sorted(self._unsent_journal.items()):
            write_journal(output, step, self._lease.attempt, lines)
            del self._unsent_journal[step]
        write_checkpoint(output, checkpoint, self._lease.attempt, before_marker=self._lease.check)
        collect_checkpoints(output, keep=self._config.keep, keep_best=self._config.keep_best)
