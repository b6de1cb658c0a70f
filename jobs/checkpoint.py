"""Checkpoints in one form, free of world size, ZeRO stage and pickle: safetensors, JSON, and a marker with digests.

    checkpoints/step-00000010/model.safetensors      weights by name
                              optimizer.safetensors  optimizer state by parameter name
                              state.json             step, position, timed-out samples, ...
                              complete.json          digests of the three; written last, by one PUT
    journal/step-00000010.jsonl                      the metric lines since the checkpoint before

A checkpoint without its marker, or whose files do not match it, is never loaded. One background thread writes, so
that training goes on meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline import StorageError, delete, join, list_files, read_bytes, write_bytes

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE, MARKER = "model.safetensors", "optimizer.safetensors", "state.json", "complete.json"


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    every_steps: int = 500
    """Optimizer steps between checkpoints; the last step always writes one."""
    every_minutes: float = 30.0
    """Longest time between checkpoints, in minutes."""
    keep: int = 2
    """How many of the newest checkpoints are kept."""
    max_unsaved_minutes: float = 120.0
    """Training stops with an error when no checkpoint could be saved for so many minutes."""

    def __post_init__(self) -> None:
        for key, lowest in (("every_steps", 1), ("keep", 1)):
            if getattr(self, key) < lowest:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least {lowest}; use {lowest} or more")
        for key in ("every_minutes", "max_unsaved_minutes"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; it is a time in minutes")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on."""

    step: int
    """Optimizer steps done."""
    position: int
    """Views consumed: the only cursor into the data."""
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further facts as JSON values (run id, known failures)."""


class CheckpointWriter:
    """Writes checkpoints of one run in the background, one at a time, and keeps the newest few."""

    def __init__(self, output: str, config: CheckpointConfig) -> None:
        self._output, self._config = output, config
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[None] | None = None
        self._unsent_journal: dict[int, str] = {}
        self._saved_at = time.monotonic()
        self._last_due = time.monotonic()
        self.unsaved_too_long = ""
        """Why training must stop: set when nothing could be saved for `max_unsaved_minutes`."""

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
        self.wait()
        self._last_due = time.monotonic()
        self._unsent_journal[checkpoint.step] = journal
        self._pending = self._executor.submit(self._write, checkpoint)

    def wait(self, *, must_succeed: bool = False) -> None:
        """Wait for the write in progress; a failed one is told and left to the next checkpoint.

        Raises:
            StorageError: it failed and ``must_succeed``.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
            self._saved_at = time.monotonic()
        except StorageError as error:
            if must_succeed:
                raise
            logger.warning("checkpoint not saved, the next one tries again: %s", error)
            minutes = (time.monotonic() - self._saved_at) / 60
            if minutes > self._config.max_unsaved_minutes:
                self.unsaved_too_long = (
                    f"checkpoint.max_unsaved_minutes={self._config.max_unsaved_minutes}: no checkpoint could be saved "
                    f"for {minutes:.0f} minutes ({error}); mend the storage and start the same command again"
                )

    def _write(self, checkpoint: Checkpoint) -> None:
        for step, lines in sorted(self._unsent_journal.items()):
            write_bytes(join(self._output, "journal", f"step-{step:08d}.jsonl"), lines.encode())
        self._unsent_journal.clear()
        write_checkpoint(self._output, checkpoint)
        for step in complete_steps(self._output)[: -self._config.keep]:
            _remove(self._output, step)


def write_checkpoint(output: str, checkpoint: Checkpoint) -> None:
    """Write one checkpoint: files first, then the marker that makes it complete."""
    folder = _folder(output, checkpoint.step)
    state = {"step": checkpoint.step, "position": checkpoint.position, "extra": dict(checkpoint.extra)}
    files = {
        MODEL: safetensors.torch.save(dict(checkpoint.weights)),
        OPTIMIZER: safetensors.torch.save(dict(checkpoint.optimizer)),
        STATE: json.dumps(state).encode(),
    }
    for name, data in files.items():
        write_bytes(join(folder, name), data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_bytes(join(folder, MARKER), json.dumps({"step": checkpoint.step, "sha256": digests}, indent=2).encode())


def complete_steps(output: str) -> list[int]:
    """Steps of the checkpoints that have a marker, ascending."""
    uris = _listed(join(output, "checkpoints"), MARKER)
    found = (re.search(rf"/step-(\d+)/{MARKER}$", uri) for uri in uris)
    return sorted(int(match[1]) for match in found if match)


def latest_checkpoint(output: str) -> Checkpoint | None:
    """The newest checkpoint whose files match its marker; None when there is none."""
    for step in reversed(complete_steps(output)):
        checkpoint = read_checkpoint(output, step)
        if checkpoint is not None:
            return checkpoint
    return None


def read_checkpoint(output: str, step: int) -> Checkpoint | None:
    """One checkpoint; None, with a warning, when it is torn."""
    folder = _folder(output, step)
    try:
        digests = json.loads(read_bytes(join(folder, MARKER)))["sha256"]
        files = {name: read_bytes(join(folder, name)) for name in (MODEL, OPTIMIZER, STATE)}
        torn = [name for name, data in files.items() if hashlib.sha256(data).hexdigest() != digests.get(name)]
        if torn:
            raise ValueError(f"{', '.join(torn)} not as written")
        state = json.loads(files[STATE])
        weights, optimizer = (safetensors.torch.load(files[name]) for name in (MODEL, OPTIMIZER))
    except (ValueError, KeyError, SafetensorError) as error:
        logger.warning("checkpoint %s is damaged and left out: %s", folder, error)
        return None
    except StorageError as error:
        if not error.missing:
            raise
        logger.warning("checkpoint %s is incomplete and left out: %s", folder, error)
        return None
    return Checkpoint(state["step"], state["position"], weights, optimizer, state["extra"])


def read_journal(output: str, until_step: int) -> str:
    """The metric lines of all steps up to a checkpoint, joined from their segments, each step once.

    A run that died between a segment and its checkpoint wrote some steps twice; the later segment counts.
    """
    segments = ((int(uri[-14:-6]), uri) for uri in _listed(join(output, "journal"), ".jsonl"))
    texts = (read_bytes(uri).decode() for _, uri in sorted(segments))
    lines = {json.loads(line)["step"]: line + "\n" for text in texts for line in text.splitlines()}
    return "".join(lines[step] for step in sorted(lines) if step <= until_step)


def _listed(folder: str, suffix: str) -> list[str]:
    try:
        uris: list[str] = list_files(folder, suffixes=[suffix])["uri"].to_pylist()
    except StorageError as error:
        if not error.missing:
            raise
        return []
    return uris


def _remove(output: str, step: int) -> None:
    folder = _folder(output, step)
    for name in (MARKER, MODEL, OPTIMIZER, STATE):  # the marker first: what is half deleted is not complete
        delete(join(folder, name))


def _folder(output: str, step: int) -> str:
    return join(output, "checkpoints", f"step-{step:08d}")
