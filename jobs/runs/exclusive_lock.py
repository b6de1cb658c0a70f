"""One command at a time on one output: the first keeps it as long as it lives, a second one reports that and stops.

    generations/00000003.json     who began generation 3 (`jobs.runs.fencing`), or what it sealed; never changed
    generations/00000003.alive    a number that its holder raises every few seconds; "ended" at its end

A holder that died is succeeded at once where the system shows it (same machine), else after some seconds without a
heartbeat. A holder that was only cut off, and comes back, has lost: files carry the generation of their writer, so it
touches none of the later one's, and whatever decides (`ExclusiveLock.seal`) is itself the next generation, which exists
already.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from jobs.core.errors import UserError
from jobs.runs.fencing import FencingToken, claim_generation, records, who
from pipeline.storage.files import StorageError, join, read_bytes, write_bytes
from pipeline.storage.retry import RetryBudget

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
ENDED = "ended"
HOLDER, PROCESS, SEALED = "holder", "process", "sealed"


class ExclusiveLock:
    """The right to write to an output, kept up by a thread; made by `exclusive_lock`."""

    def __init__(self, token: FencingToken) -> None:
        self.generation = token.generation
        """Names this writer's files."""
        self._token = token
        self._checked_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock-heartbeat")
        self._thread.start()

    def check(self) -> None:
        """Check, every few seconds, that no other command has taken over.

        Raises:
            SupersededError: one has.
        """
        if time.monotonic() - self._checked_at > HEARTBEAT_SECONDS:
            self._token.check()
            self._checked_at = time.monotonic()

    def seal(self, content: Mapping[str, Any]) -> None:
        """Decide something: every later holder finds it (`last_sealed`).

        Raises:
            SupersededError: another command has taken over, and nothing is decided.
        """
        self._token = self._token.next_generation({**_identity(self.generation), SEALED: dict(content)})

    def end(self) -> None:
        """Release the output."""
        self._ended.set()
        self._thread.join()
        _write_heartbeat(self._token.output, self.generation, ENDED)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.is_set():
            beat += 1
            _write_heartbeat(self._token.output, self.generation, str(beat))
            self._ended.wait(HEARTBEAT_SECONDS)


@contextmanager
def exclusive_lock(output: str) -> Iterator[ExclusiveLock]:
    """Hold the output while the context lasts.

    Raises:
        UserError: another job holds it.
    """
    newest = next(records(output), None)
    if newest is not None and _is_alive(output, newest):
        raise UserError(_held(output, newest))
    generation = newest["generation"] + 1 if newest else 1
    # Two commands may find the same dead holder at the same time: the conditional write of the record admits one.
    if not claim_generation(output, generation, _identity(generation)):
        raise UserError(_held(output, next(records(output))))
    writer = ExclusiveLock(FencingToken(output, generation))
    try:
        yield writer
    finally:
        writer.end()


def last_sealed(output: str) -> dict[str, Any] | None:
    """What was decided last; None before the first time."""
    return next((record[SEALED] for record in records(output) if SEALED in record), None)


def _held(output: str, record: Mapping[str, Any]) -> str:
    return (
        f"output={output}: another job is working on it ({who(record)}); wait for its end or stop it, then start "
        "this command again; or choose another output"
    )


def _is_alive(output: str, record: Mapping[str, Any]) -> bool:
    """Whether the writer of a record still works: its heartbeat changes while we watch it."""
    first = beat = _heartbeat(output, record)
    begun = time.monotonic()
    while beat == first:
        if beat == ENDED or _is_dead(record[PROCESS]) or time.monotonic() - begun > SILENT_SECONDS:
            return False
        time.sleep(HEARTBEAT_SECONDS / 5)
        beat = _heartbeat(output, record)
    return beat != ENDED


def _heartbeat(output: str, record: Mapping[str, Any]) -> str:
    try:
        return read_bytes(_alive_file(output, record[HOLDER])).decode()
    except StorageError as error:
        if not error.missing:
            raise
        return ""


def _write_heartbeat(output: str, generation: int, beat: str) -> None:
    """One that cannot be written is made up for by the next."""
    try:
        with RetryBudget(HEARTBEAT_SECONDS).shared():  # longer is in vain: the next one follows
            write_bytes(_alive_file(output, generation), beat.encode())
    except StorageError as error:
        logger.warning("heartbeat not written: %s", error)


def _alive_file(output: str, generation: int) -> str:
    return join(output, "generations", f"{generation:08d}.alive")


def _identity(holder: int) -> dict[str, Any]:
    process = {"machine": _machine(), "pid": os.getpid(), "created": psutil.Process().create_time()}
    return {HOLDER: holder, PROCESS: process}


def _is_dead(process: Mapping[str, Any]) -> bool:
    """True only for a dead process of this machine; of other machines one cannot know."""
    if process["machine"] != _machine():
        return False
    try:
        found = psutil.Process(process["pid"])
        return found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - process["created"]) > 1
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Within which process numbers mean something: this boot of this machine, this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
