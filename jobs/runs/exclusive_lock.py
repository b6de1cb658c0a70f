"""One command at a time on one output: the first keeps it as long as it lives, a second one says so and stops.

    generations/00000003.json     who bega generation 3 (`jobs.runs.fencing`), or what it sealed; never changed
    generations/00000003.alive    a number that its holder raises every few seconds; "ended" at its end

Who dies without a word is followed at once where the system can tell (same machine), else after some silence. A holder
that was only cut off, and comes back, has lost: files carry the generation of their writer, so it touches none of the
later one's, and whatever decides (`ExclusiveLock.seal`) is itself the next generation, which exists already.
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

BEAT_SECONDS = 5.0
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
        self._thread = threading.Thread(target=self._beat, daemon=True, name="sign-of-life")
        self._thread.start()

    def check(self) -> None:
        """Make sure, every few seconds, that nobody has taken over.

        Raises:
            SupersededError: somebody has.
        """
        if time.monotonic() - self._checked_at > BEAT_SECONDS:
            self._token.check()
            self._checked_at = time.monotonic()

    def seal(self, content: Mapping[str, Any]) -> None:
        """Decide something: it holds from here on, whoever comes next (`last_sealed`).

        Raises:
            SupersededError: somebody has taken over, and nothing is decided.
        """
        self._token = self._token.next_generation({**_identity(self.generation), SEALED: dict(content)})

    def end(self) -> None:
        """Leave the output to others."""
        self._ended.set()
        self._thread.join()
        _tell(self._token.output, self.generation, ENDED)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.is_set():
            beat += 1
            _tell(self._token.output, self.generation, str(beat))
            self._ended.wait(BEAT_SECONDS)


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
        f"output={output}: another job is at work on it ({who(record)}); wait for its end or stop it, then start "
        "this command again; or choose another output"
    )


def _is_alive(output: str, record: Mapping[str, Any]) -> bool:
    """Whether the writer of a record still works: its sign of life changes while we look."""
    first = sign = _heartbeat(output, record)
    begun = time.monotonic()
    while sign == first:
        if sign == ENDED or _is_dead(record[PROCESS]) or time.monotonic() - begun > SILENT_SECONDS:
            return False
        time.sleep(BEAT_SECONDS / 5)
        sign = _heartbeat(output, record)
    return sign != ENDED


def _heartbeat(output: str, record: Mapping[str, Any]) -> str:
    try:
        return read_bytes(_alive_file(output, record[HOLDER])).decode()
    except StorageError as error:
        if not error.missing:
            raise
        return ""


def _tell(output: str, generation: int, sign: str) -> None:
    """A sign that cannot be written is told by the next one."""
    try:
        with RetryBudget(BEAT_SECONDS).shared():  # longer is in vain: the next one follows
            write_bytes(_alive_file(output, generation), sign.encode())
    except StorageError as error:
        logger.warning("sign of life: %s", error)


def _alive_file(output: str, generation: int) -> str:
    return join(output, "generations", f"{generation:08d}.alive")


def _identity(holder: int) -> dict[str, Any]:
    process = {"machine": _machine(), "pid": os.getpid(), "created": psutil.Process().create_time()}
    return {HOLDER: holder, PROCESS: process}


def _is_dead(process: Mapping[str, Any]) -> bool:
    """True only for a process of this machine that is gone; of others one cannot know."""
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
