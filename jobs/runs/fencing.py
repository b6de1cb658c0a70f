"""One writer for one output: every start of the workers takes the next generation number, and the highest one counts.

    generations/00000003.json    who started generation 3, where and when; created by one conditional write

The newest start takes over, on purpose: a person or a scheduler that starts the command again means it, and a host that
was cut off cannot be distinguished from a silent one. The holder of a lower number notices before it completes a
checkpoint, deletes or ends a run: it reports who took over and stops. (`jobs.tagging.job_log` is for
commands of which the first shall keep the output.)
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.core.errors import TrainingStoppedError
from pipeline.storage.files import exists, file_names, join, read_bytes, write_if_absent
from pipeline.storage.records import DamagedError, as_record

logger = logging.getLogger(__name__)
MOST_MISSING = 1000  # records between two that exist


class SupersededError(TrainingStoppedError):
    """A later generation owns the output."""


@dataclass(frozen=True)
class FencingToken:
    """The right to write to ``output``, as long as no higher generation exists; picklable."""

    output: str
    generation: int

    def superseded_by(self) -> str:
        """Who took over, as a message; empty while the token is held.

        Raises:
            StorageError: the output cannot be reached, so it is unknown.
        """
        successor = _record_uri(self.output, self.generation + 1)
        if not exists(successor):
            return ""
        return (
            f"output={self.output}: a later start has taken over ({who(_record(self.output, self.generation + 1))}); "
            f"generation {self.generation} stops and leaves the output to it; if that was not intended, stop the "
            "other one and start this command again"
        )

    def check(self) -> None:
        """Raise `SupersededError` where a later generation took over, or `StorageError` where that is unknown."""
        if lost := self.superseded_by():
            raise SupersededError(lost)

    def next_generation(self, note: Mapping[str, Any] | None = None) -> FencingToken:
        """The next generation of the same command, which shuts out workers of this one that may still run somewhere.

        Raises:
            SupersededError: another job was faster.
        """
        if not claim_generation(self.output, self.generation + 1, note):
            raise SupersededError(self.superseded_by())
        return FencingToken(self.output, self.generation + 1)


def acquire_token(output: str) -> FencingToken:
    """Take the output over, whichever job holds it."""
    generation = max(generation_numbers(output), default=0) + 1
    while not claim_generation(output, generation):
        generation += 1
    return FencingToken(output, generation)


def claim_generation(output: str, generation: int, note: Mapping[str, Any] | None = None) -> bool:
    """Write the record of a generation unless it exists; of racing commands exactly one gets True."""
    facts = {"generation": generation, "host": socket.gethostname(), "pid": os.getpid(), **(note or {})}
    facts["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    return write_if_absent(_record_uri(output, generation), json.dumps(facts).encode())


def records(output: str) -> Iterator[dict[str, Any]]:
    """The records of all generations, the newest first; of a damaged one the number alone."""
    for generation in sorted(generation_numbers(output), reverse=True):
        yield _record(output, generation)


def who(record: Mapping[str, Any]) -> str:
    """Who made a generation, in words."""
    pid, host, started = (record.get(key, "unknown") for key in ("pid", "host", "started"))
    return f"generation {record['generation']}, process {pid} on {host}, {started}"


def _record(output: str, generation: int) -> dict[str, Any]:
    uri = _record_uri(output, generation)
    try:
        return {**as_record(uri, read_bytes(uri)), "generation": generation}
    except DamagedError as error:
        logger.warning("%s; its number alone counts", error)
        return {"generation": generation}


def generation_numbers(output: str) -> list[int]:
    """The generations that have a record, in no particular order."""
    found = (re.fullmatch(r"(\d{8,12})\.json", name) for name in file_names(join(output, "generations")))
    return _without_outliers(sorted(int(match[1]) for match in found if match))


def _without_outliers(numbers: list[int]) -> list[int]:
    """Starts count on by one: a number far above all others is no start's, and would stay the newest."""
    for index, (before, number) in enumerate(itertools.pairwise([0, *numbers])):
        if number - before > MOST_MISSING:
            logger.warning("generations from %d on are damaged, left out", number)
            return numbers[:index]
    return numbers


def _record_uri(output: str, generation: int) -> str:
    return join(output, "generations", f"{generation:08d}.json")
