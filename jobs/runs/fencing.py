"""One writer for one output: every start of the workers takes the next attempt number, and the highest one counts.

    attempts/00000003.json    who started attempt 3, where and when; created by one conditional write

The newest start takes over, on purpose: a person or a scheduler that starts the command again means it, and nobody can
tell a host that was cut off from one that is merely silent. Whoever holds a lower number finds that out before it makes
a checkpoint complete, deletes or ends a run: it says who took over and stops. (`jobs.runs.exclusive_lock` is for
programs of which the first shall keep the output.)
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.core.errors import TrainingStoppedError
from pipeline.storage.files import StorageError, exists, join, list_files, read_bytes, write_if_absent


class LeaseLostError(TrainingStoppedError):
    """A later attempt owns the output."""


@dataclass(frozen=True)
class Lease:
    """The right to write to ``output``, as long as no higher attempt is there; picklable."""

    output: str
    attempt: int

    def lost_to(self) -> str:
        """Who took over, as a message; empty while the lease is held.

        Raises:
            StorageError: the output cannot be reached, so nobody knows.
        """
        successor = _place(self.output, self.attempt + 1)
        if not exists(successor):
            return ""
        return (
            f"output={self.output}: a later start has taken over ({who(json.loads(read_bytes(successor)))}); attempt "
            f"{self.attempt} stops and leaves the output to it; if that was not meant, stop the other one and start "
            "this command again"
        )

    def check(self) -> None:
        """Make sure that the lease is held.

        Raises:
            LeaseLostError: a later attempt took over.
            StorageError: the output cannot be reached.
        """
        lost = self.lost_to()
        if lost:
            raise LeaseLostError(lost)

    def renewed(self, note: Mapping[str, Any] | None = None) -> Lease:
        """The next attempt of the same program, which shuts out workers of this one that may still run somewhere.

        Args:
            note: what the record of the attempt shall tell besides.

        Raises:
            LeaseLostError: another program was faster.
        """
        if not take_attempt(self.output, self.attempt + 1, note):
            raise LeaseLostError(self.lost_to())
        return Lease(self.output, self.attempt + 1)


def take_lease(output: str) -> Lease:
    """Take the output over from whoever has it."""
    attempt = max(attempt_numbers(output), default=0) + 1
    while not take_attempt(output, attempt):
        attempt += 1
    return Lease(output, attempt)


def take_attempt(output: str, attempt: int, note: Mapping[str, Any] | None = None) -> bool:
    """Write the record of an attempt unless it is there; of racing programs exactly one gets True."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"attempt": attempt, "host": socket.gethostname(), "pid": os.getpid(), "started": started, **(note or {})}
    return write_if_absent(_place(output, attempt), json.dumps(facts).encode())


def records(output: str) -> Iterator[dict[str, Any]]:
    """The records of all attempts, the newest first."""
    for attempt in sorted(attempt_numbers(output), reverse=True):
        yield json.loads(read_bytes(_place(output, attempt)))


def who(record: Mapping[str, Any]) -> str:
    """Who made an attempt, in words."""
    return f"attempt {record['attempt']}, process {record['pid']} on {record['host']}, {record['started']}"


def attempt_numbers(output: str) -> list[int]:
    """The attempts that have a record, in no particular order."""
    try:
        uris = list_files(join(output, "attempts"), suffixes=[".json"])["uri"].to_pylist()
    except StorageError as error:
        if not error.missing:
            raise
        return []
    found = (re.search(r"/(\d{8})\.json$", uri) for uri in uris)
    return [int(match[1]) for match in found if match]


def _place(output: str, attempt: int) -> str:
    return join(output, "attempts", f"{attempt:08d}.json")
