"""The actor between the driver and its workers: stop requests go down, lines and heartbeats come up.

One small actor a run, on the driver's host. Workers never wait for it: they post without waiting for an answer and read
only answers that have arrived. The driver's side is `jobs.supervision.watchdog`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import ray

from jobs.supervision.stack_dump import stacks_on_signal

SECONDS_BETWEEN_BEATS = 1.0


class StopReason(IntEnum):
    """Why the loop stops before the last step, by severity; the highest that any rank knows of counts for all."""

    NONE = 0
    RESIZED = 1
    REQUESTED = 2
    UNSAVED = 3
    UNDECODABLE = 4
    NOT_FINITE = 5


class Activity(IntEnum):
    """What a rank is doing, in the order of a step."""

    STARTING = 0
    WAITING_FOR_DATA = 1
    FORWARD = 2
    BACKWARD = 3
    AGREEING = 4
    SAVING = 5
    MEASURING = 6


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank runs and what it was doing when it sent this."""

    rank: int
    host: str
    node_id: str
    pid: int
    stacks_path: str
    """Where its stacks appear, on its host, after the signal (see `jobs.supervision.stack_dump`)."""
    step: int = 0
    """Optimizer steps done."""
    micro_batch: int = 0
    """Micro-batches of the running step that were begun."""
    activity: Activity = Activity.STARTING

    @property
    def progress(self) -> tuple[int, int, int]:
        """How far it has come; ranks that wait for each other differ by a little."""
        return self.step, self.micro_batch, int(self.activity)

    def __str__(self) -> str:
        activity = self.activity.name.lower().replace("_", " ")
        return f"rank {self.rank} on {self.host} (process {self.pid}): {activity} in step {self.step + 1}"


def first_heartbeat(rank: int = 0) -> Heartbeat:
    """The heartbeat of this process, which from now on writes its stacks when it gets the signal."""
    node_id = ray.get_runtime_context().get_node_id()
    return Heartbeat(rank, socket.gethostname(), node_id, os.getpid(), stacks_on_signal())


class Line(NamedTuple):
    """A line for the person at the driver."""

    text: str
    figures: dict[str, Any] | None = None
    """The journal line of the step that it shows, if it shows one."""


class Coordinator:
    """Holds what the driver requested of the workers, and what they posted since its last poll."""

    def __init__(self) -> None:
        self._generation = 0
        self._stop_request = StopReason.NONE
        self._lines: list[Line] = []
        self._figures: list[dict[str, Any]] = []
        self._steps = 0
        self._result: dict[str, Any] | None = None
        self._heartbeats: dict[int, Heartbeat] = {}

    def begin(self, generation: int, step: int) -> None:
        """A new group of workers starts from a step; what an older one still posts is not counted."""
        self._generation, self._steps, self._result, self._heartbeats = generation, step, None, {}
        if self._stop_request is StopReason.RESIZED:
            self._stop_request = StopReason.NONE

    def request(self, stop_request: StopReason) -> None:
        """Ask the workers to end at their next step; a stop is not taken back by a resize."""
        self._stop_request = max(self._stop_request, stop_request)

    def stop_request(self) -> StopReason:
        return self._stop_request

    def post(self, generation: int, line: str, steps: int, figures: dict[str, Any] | None = None) -> None:
        """Add a line for the person at the driver (empty: none), how many steps are done, a step's journal line."""
        if line:
            self._lines.append(Line(line, figures))
        if generation != self._generation:
            return
        self._steps = steps
        if figures:
            self._figures.append(figures)

    def beat(self, generation: int, heartbeat: Heartbeat) -> None:
        if generation == self._generation:
            self._heartbeats[heartbeat.rank] = heartbeat

    def end(self, generation: int, result: dict[str, Any]) -> None:
        if generation == self._generation:
            self._result = result

    def result(self) -> dict[str, Any] | None:
        """How the group ended; None while it runs, or when it died."""
        return self._result

    def take(self) -> tuple[list[Line], list[dict[str, Any]], int, dict[int, Heartbeat]]:
        """Lines and journal lines since the last call, the steps done, and the ranks' last heartbeats."""
        lines, self._lines = self._lines, []
        figures, self._figures = self._figures, []
        return lines, figures, self._steps, dict(self._heartbeats)


class CoordinatorClient(logging.Handler):
    """The coordinator as one rank sees it; as a logging handler it carries warnings to the driver."""

    def __init__(self, coordinator: Any, rank: int, generation: int) -> None:
        super().__init__(logging.WARNING)
        self._coordinator, self._generation = coordinator, generation
        self._answer = coordinator.stop_request.remote()
        self._heartbeat = first_heartbeat(rank)
        self._beating = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._ended = threading.Event()
        self._beating.start()

    def mark(self, step: int, micro_batch: int, activity: Activity) -> None:
        """Note what this rank is doing; the next heartbeat carries it."""
        self._heartbeat = replace(self._heartbeat, step=step, micro_batch=micro_batch, activity=activity)

    def post(self, line: str, steps: int, figures: dict[str, Any] | None = None) -> None:
        """Post a line (empty: none), the steps done, and the journal line of a step."""
        self._coordinator.post.remote(self._generation, line, steps, figures)

    def end(self, result: Any) -> None:
        ray.get(self._coordinator.end.remote(self._generation, asdict(result)))

    def close(self) -> None:
        """Send no more heartbeats."""
        self._ended.set()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self.post(f"{record.levelname.lower()}: {record.getMessage()}", self._heartbeat.step)

    def stop_request(self) -> StopReason:
        """The newest answer that has arrived."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return StopReason.NONE
        stop_request: StopReason = ray.get(self._answer)
        self._answer = self._coordinator.stop_request.remote()
        return stop_request

    def _beat(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            self._coordinator.beat.remote(self._generation, self._heartbeat)


def elapsed_minutes(since: float) -> float:
    """Minutes since a reading of ``time.monotonic()``."""
    return (time.monotonic() - since) / 60
