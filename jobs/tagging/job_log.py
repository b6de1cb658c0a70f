"""Who works on an output, and the videos at work there: the log of its third table, `jobs`.

Every commit names the job with its process, and holds for every task the video that it reads and for every video the
attempts that did not end. A commit holds only on top of the newest one, so of two jobs that believe to be the only one
the slower one meets the other's commit and stops. A job commits every few seconds: one that does not, or whose process
is known to be dead, is followed by the next.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
from ray.exceptions import RayError

from jobs.core.errors import UserError, WorkStoppedError
from pipeline.decode.crash_budget import MOST
from pipeline.storage.delta import Change, ConflictError, Table, create_table, open_table
from pipeline.storage.files import StorageError, join
from pipeline.storage.records import DAMAGED_REMEDY, DamagedError, Types, as_record

logger = logging.getLogger(__name__)

JOBS = "jobs"
HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
# Some commits a second, of which only the newest is ever read.
LOG_SETTINGS = {"delta.checkpointInterval": "100", "delta.logRetentionDuration": "interval 1 hours"}
STATE = "state"
ENTRIES: Mapping[str, Types] = {
    "job": dict,
    "ended": bool,
    "at_work": dict,
    "attempts": dict,
    "uris": dict,
    "lost": int,
}
PROCESS: Mapping[str, Types] = {"host": str, "pid": int, "machine": str, "created": (int, float), "started": str}
NO_ROWS = pa.schema([("video_id", pa.int64())])


class Begin(NamedTuple):
    """A task begins with a video, and has ended with the one before."""

    task: str
    run: str
    """Names one run of the task: a task whose worker died is run again."""
    video_id: int
    """`NONE` where the task has ended."""
    uri: str = ""
    give_up: bool = False
    """Instead: the decoder has tried this video as often as it may."""


NONE = -1


@dataclass
class State:
    """What the log holds."""

    job: dict[str, Any]
    """Process, host and start of the job that works here."""
    ended: bool = False
    at_work: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Task → its run, and the video that it reads."""
    attempts: dict[int, int] = field(default_factory=dict)
    """Video → attempts at it that did not end."""
    uris: dict[int, str] = field(default_factory=dict)
    """Of the videos in both."""
    lost: int = 0
    """Attempts that did not end, of all jobs of this output together."""

    def to_json(self) -> str:
        """As text for the log."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str, uri: str) -> State:
        """The reverse of `to_json`.

        Raises:
            DamagedError: it is something else; ``uri`` names the table.
        """
        record = as_record(uri, text, ENTRIES)
        as_record(uri, json.dumps(record["job"]), PROCESS)
        try:
            record["attempts"] = {int(video): int(count) for video, count in record["attempts"].items()}
            record["uris"] = {int(video): str(uri) for video, uri in record["uris"].items()}
            record["at_work"] = {task: (str(run), int(video)) for task, (run, video) in record["at_work"].items()}
            return cls(**record)
        except (TypeError, ValueError, OverflowError) as error:
            raise DamagedError(uri, f"is damaged: no state of a job ({error})", DAMAGED_REMEDY) from error

    def begin(self, asked: Begin) -> int:
        """Note a video at work; returns the attempts at it that were lost. One that has none left is not noted."""
        if asked.give_up:
            self.attempts[asked.video_id] = MOST
            return MOST
        self._leave(asked)
        lost = self.attempts.get(asked.video_id, 0)
        if asked.video_id != NONE and lost < MOST:
            self.at_work[asked.task] = (asked.run, asked.video_id)
            self.uris[asked.video_id] = asked.uri
        return lost

    def _leave(self, asked: Begin) -> None:
        """End the attempt at the video before, or count it as lost where another run of the task began it."""
        run, video = self.at_work.pop(asked.task, (asked.run, NONE))
        if run != asked.run:
            self.lose(video)
        elif self.attempts.get(video, 0) < MOST:
            self.attempts.pop(video, None)
        if video not in self.attempts:
            self.uris.pop(video, None)

    def lose(self, video: int) -> None:
        """Count an attempt that did not end."""
        self.attempts[video] = self.attempts.get(video, 0) + 1
        self.lost += 1

    def interrupt(self) -> None:
        """Forget what is at work: the job has ended it, and no video."""
        self.at_work.clear()
        self.uris = {video: uri for video, uri in self.uris.items() if video in self.attempts}

    def followed_by(self, job: dict[str, Any]) -> State:
        """What the next job begins with."""
        after = State(job, attempts=dict(self.attempts), uris=dict(self.uris), lost=self.lost)
        for _, video in self.at_work.values():
            after.lose(video)
        return after


class JobLog:
    """The right to work on an output, kept up by a thread; made by `working_on`."""

    def __init__(self, table: Table, state: State, follows_a_dead_one: bool) -> None:
        self.state = state
        self.follows_a_dead_one = follows_a_dead_one
        """Whether the job before did not end by itself."""
        self._table = table
        self._lock = threading.Lock()
        self._committed_at = time.monotonic()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="job-heartbeat")
        self._thread.start()

    def begin(self, asked: Sequence[Begin]) -> list[int]:
        """Note that videos are begun, before they are; returns the lost attempts at each.

        Raises:
            WorkStoppedError: another job has taken over.
        """
        with self._lock:
            answers = [self.state.begin(one) for one in asked]
            self._commit()
        return answers

    def check(self) -> None:
        """Raise `WorkStoppedError` where another job has taken over."""
        if self._lost:
            raise WorkStoppedError(self._lost)

    def end(self, *, interrupted: bool) -> None:
        """Leave the output to the next job.

        Args:
            interrupted: videos at work were cut off by this end, and had nothing to do with it.
        """
        self._ended.set()
        self._thread.join()
        try:
            with self._lock:
                self.state.ended = True
                if interrupted:
                    self.state.interrupt()
                self._commit()
        except (StorageError, WorkStoppedError) as error:  # the next job waits for some seconds of silence
            logger.warning("the end of the job is not noted: %s", error)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS / 5):
            with self._lock:
                if time.monotonic() - self._committed_at < HEARTBEAT_SECONDS:
                    continue
                try:
                    self._commit()
                except WorkStoppedError:
                    return
                except StorageError:  # made up for by the next
                    continue

    def _commit(self) -> None:
        self.check()
        try:
            self._table.commit(Change(), {STATE: self.state.to_json()})
        except ConflictError as error:
            self._lost = _taken_over(self._table)
            raise WorkStoppedError(self._lost) from error
        self._committed_at = time.monotonic()


@contextmanager
def working_on(output: str) -> Iterator[JobLog]:
    """Hold the output while the context lasts.

    Raises:
        UserError: another job holds it.
    """
    uri = join(output, JOBS)
    table = open_table(uri)
    before = None if table is None else read_state(table)
    if table is not None and before is not None and _is_alive(table, before):
        raise UserError(_held(output, read_state(table)))
    state = before.followed_by(_this_process()) if before else State(_this_process())
    # Two jobs may find the same dead one at the same time: the commit on top of what it has left admits one.
    try:
        table = table or create_table(uri, NO_ROWS, settings=LOG_SETTINGS)
        table.commit(Change(), {STATE: state.to_json()})
    except ConflictError as error:
        newest = open_table(uri)
        raise UserError(_held(output, read_state(newest) if newest else None)) from error
    log = JobLog(table, state, before is not None and not before.ended)
    cluster_failed = False
    try:
        yield log
    except RayError:
        cluster_failed = True  # perhaps of a video: those at work have lost an attempt
        raise
    finally:
        log.end(interrupted=not cluster_failed)


def read_state(table: Table) -> State | None:
    """The state that the newest commit of a table holds; None of a table that was only created."""
    (newest,) = table.commits(1)
    return State.from_json(newest[STATE], table.uri) if STATE in newest else None


def _is_alive(table: Table, state: State) -> bool:
    """Whether a job still works: it commits while we watch."""
    begun, seen = time.monotonic(), table.version
    while not state.ended and not _is_dead(state.job) and time.monotonic() - begun < SILENT_SECONDS:
        table.refresh()
        if table.version != seen:
            newest = read_state(table)
            return newest is not None and not newest.ended
        time.sleep(HEARTBEAT_SECONDS / 5)
    return False


def _held(output: str, state: State | None) -> str:
    who = _who(state.job) if state else "it has just begun"
    return (
        f"output={output}: another job is working on it ({who}); wait for its end or stop it, then start this command "
        "again; or choose another output"
    )


def _taken_over(table: Table) -> str:
    newest = read_state(table)
    return (
        f"{table.uri}: another job has taken over ({_who(newest.job) if newest else 'unknown'}); this one stops and "
        "leaves the output to it; if that was not intended, stop the other one and start this command again"
    )


def _who(job: Mapping[str, Any]) -> str:
    return f"process {job['pid']} on {job['host']}, {job['started']}"


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "created": psutil.Process().create_time(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _is_dead(job: Mapping[str, Any]) -> bool:
    """True only for a dead process of this machine; of other machines one cannot know."""
    if job["machine"] != _machine():
        return False
    try:
        found = psutil.Process(job["pid"])
        return found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - job["created"]) > 1
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Within which process numbers mean something: this boot of this machine, this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
