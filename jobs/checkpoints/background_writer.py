"""When checkpoints are written, and the background thread that writes them while training continues."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from hiera_video.rules import Checked, Rules
from jobs.checkpoints.grace_time import GraceTime
from jobs.checkpoints.store import Checkpoint, collect_checkpoints, write_checkpoint, write_journal
from jobs.runs.fencing import FencingToken, SupersededError
from jobs.supervision.coordinator import elapsed_minutes
from pipeline.series import LAST_CHECKPOINT, stamp
from pipeline.storage.files import StorageError
from pipeline.storage.retry import RetryBudget

logger = logging.getLogger(__name__)

UPLOAD_BUDGET_SECONDS = 300.0  # no one waits for it; what fails longer is left to the next checkpoint
LAST_PAUSE_SECONDS = 10.0
SECONDS_BEFORE_TRAINING_CONTINUES = 60.0
UNFINISHED = "a write does not finish"


@dataclass(frozen=True)
class CheckpointConfig(Checked):
    """When checkpoints are written and which are kept."""

    # Bounds what a kill costs where steps are slow; with fast steps `every_steps` comes first.
    every_minutes: ClassVar[float] = 30.0
    # The best by validation, which becomes `best.safetensors`.
    keep_best: ClassVar[int] = 1
    # Outlasts most failures of storage; longer would waste the work of a whole group of workers.
    max_unsaved_minutes: ClassVar[float] = 120.0
    every_steps: int = 500
    """Optimizer steps between checkpoints; the last step always writes one."""
    keep: int = 2
    """How many of the newest checkpoints are kept."""

    def rules(self) -> Rules:
        for key in ("every_steps", "keep"):
            yield key, getattr(self, key) >= 1, "must be at least 1; use 1 or more"


class CheckpointWriter:
    """Writes checkpoints of one run in the background, one at a time, as long as the token is held.

    Only `finish` waits for storage that does not answer: with `save` all ranks would, in their next collective
    operation, until that times out.
    """

    def __init__(self, config: CheckpointConfig, token: FencingToken) -> None:
        self._config, self._token = config, token
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[None] | None = None
        self._writing: Checkpoint | None = None
        self._unsent: Checkpoint | None = None
        self._unsent_journal: dict[int, str] = {}
        self._saved_at = self._began_at = self._last_due = time.monotonic()
        self._reason, self._grace_time = UNFINISHED, GraceTime()
        self._trial: Future[None] | None = None
        self.failure = ""
        """Why training must stop: nothing could be saved for `max_unsaved_minutes`, or the token is lost."""

    def expect(self, size: int) -> None:
        """Find out in the background whether checkpoints of ``size`` bytes fit into the grace time, and warn if not."""
        self._trial = self._executor.submit(self._try_out, size)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` optimizer steps."""
        minutes = elapsed_minutes(self._last_due)
        return step % self._config.every_steps == 0 or minutes >= self._config.every_minutes

    def save(self, checkpoint: Checkpoint, journal: str) -> None:
        """Write in the background, after the one before; where that takes long, the newest that came meanwhile is next.

        The tensors must not change afterwards. ``journal``: metric lines since the checkpoint before.
        """
        self._settle(SECONDS_BEFORE_TRAINING_CONTINUES - (time.monotonic() - self._began_at))
        self._last_due = time.monotonic()
        self._unsent_journal[checkpoint.step] = journal
        self._unsent = checkpoint
        if self._pending is None:
            self._begin()

    def poll(self) -> None:
        """Note how the write in progress ended, or that it takes too long, and begin the one that waits."""
        if self._trial is not None and self._trial.done():
            self._trial.result()
            self._trial = None
        self._settle(0)

    def finish(self) -> None:
        """Wait until the last checkpoint is written, trying for `max_unsaved_minutes`; `failure` says if it is not."""
        self._settle(self._seconds_left())
        while self._unsent is not None and not self.failure:
            if self._pending is None:  # the last try has failed
                time.sleep(LAST_PAUSE_SECONDS)
                self._begin()
            self._settle(self._seconds_left())

    def _begin(self) -> None:
        assert self._unsent is not None
        self._writing, self._began_at = self._unsent, time.monotonic()
        self._pending = self._executor.submit(self._write, self._unsent)

    def _seconds_left(self) -> float:
        return 60 * (self._config.max_unsaved_minutes - elapsed_minutes(self._began_at))

    def _settle(self, seconds: float) -> None:
        """Wait so long for the write in progress; a failed one is logged, and left to the next checkpoint."""
        if self._pending is None:
            return
        try:
            self._pending.result(max(seconds, 0))
            self._saved_at, self._reason = time.monotonic(), UNFINISHED
            stamp(LAST_CHECKPOINT)
            self._unsent = None if self._unsent is self._writing else self._unsent
            self._writing = None  # as large as weights and optimizer state together
        except SupersededError as lost:
            self.failure = str(lost)
        except StorageError as error:
            logger.warning("checkpoint not saved, retried with the next one: %s", error)
            self._reason = str(error)
            self._fail_after_too_long(self._saved_at)
        except TimeoutError:
            self._fail_after_too_long(self._began_at)
            return
        self._pending = None
        if self._unsent is not None and self._unsent is not self._writing:
            self._begin()

    def _fail_after_too_long(self, since: float) -> None:
        minutes = elapsed_minutes(since)
        if minutes >= self._config.max_unsaved_minutes:
            self.failure = (
                f"max_unsaved_minutes={self._config.max_unsaved_minutes}: no checkpoint could be saved "
                f"for {minutes:.0f} minutes ({self._reason}); repair the storage and start the same command again"
            )

    def _try_out(self, size: int) -> None:
        try:
            self._grace_time.expect(self._token.output, size)
        except StorageError as error:
            logger.warning("whether a checkpoint fits into the grace time is not known yet: %s", error)

    def _write(self, checkpoint: Checkpoint) -> None:
        output, generation, began = self._token.output, self._token.generation, time.monotonic()
        with RetryBudget(UPLOAD_BUDGET_SECONDS).shared():
            self._token.check()
            for step, lines in sorted(self._unsent_journal.items()):
                write_journal(output, step, generation, lines)
                del self._unsent_journal[step]
            write_checkpoint(output, checkpoint, generation, before_marker=self._token.check)
            seconds = time.monotonic() - began
            self._grace_time.report(seconds, f"takes {seconds:.0f} s to write")
            self._collect()

    def _collect(self) -> None:
        """Delete what is superfluous; a failure harms no checkpoint."""
        try:
            self._token.check()  # the marker may have taken long
            kept = {"keep": self._config.keep, "keep_best": self._config.keep_best}
            collect_checkpoints(self._token.output, generation=self._token.generation, **kept)
        except StorageError as error:
            logger.warning("superfluous checkpoints not deleted: %s", error)
