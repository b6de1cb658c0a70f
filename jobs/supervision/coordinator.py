"""The thread between the driver and its workers: a request to end goes down, lines and signs of life come up.

One small actor a run, on the driver's host. Workers never wait for it: they post without asking for an answer and look
only at answers that have arrived. The driver's side is `jobs.supervision.watchdog`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any

import ray

from jobs.supervision.stack_dump import stacks_on_signal

SECONDS_BETWEEN_BEATS = 1.0


class Ending(IntEnum):
    """Why the loop ends before the last step; the highest that any rank knows of counts for all."""

    NONE = 0
    RESIZED = 1
    REQUESTED = 2
    UNSAVED = 3
    UNDECODABLE = 4
    NOT_FINITE = 5


class Doing(IntEnum):
    """What a rank is at, in the order of a step."""

    STARTING = 0
    WAITING_FOR_DATA = 1
    FORWARD = 2
    BACKWARD = 3
    AGREEING = 4
    SAVING = 5
    MEASURING = 6


@dataclass(frozen=True)
class SignOfLife:
    """Where a rank runs and what it was at when it last gave a sign."""

    rank: int
    host: str
    node_id: str
    pid: int
    stacks_path: str
    """Where its stacks appear, on its host, when it gets the signal (see `jobs.supervision.stack_dump`)."""
    step: int = 0
    """Optimizer steps done."""
    micro_batch: int = 0
    """Micro-batches of the running step that were begun."""
    doing: Doing = Doing.STARTING

    @property
    def place(self) -> tuple[int, int, int]:
        """How far it has come; ranks that wait for each other differ by a little."""
        return self.step, self.micro_batch, int(self.doing)

    def __str__(self) -> str:
        doing = self.doing.name.lower().replace("_", " ")
        return f"rank {self.rank} on {self.host} (process {self.pid}): {doing} in step {self.step + 1}"


def first_sign(rank: int = 0) -> SignOfLife:
    """The sign of this process, which from now on writes its stacks when it gets the signal."""
    node_id = ray.get_runtime_context().get_node_id()
    return SignOfLife(rank, socket.gethostname(), node_id, os.getpid(), stacks_on_signal())


class RunBoard:
    """Holds what the driver asked the workers for, and what they posted since it looked."""

    def __init__(self) -> None:
        self._attempt = 0
        self._wish = Ending.NONE
        self._lines: list[str] = []
        self._figures: list[dict[str, Any]] = []
        self._steps = 0
        self._result: dict[str, Any] | None = None
        self._signs: dict[int, SignOfLife] = {}

    def begin(self, attempt: int, step: int) -> None:
        """A new group of workers starts from a step; what an older one still posts is not counted."""
        self._attempt, self._steps, self._result, self._signs = attempt, step, None, {}
        if self._wish is Ending.RESIZED:
            self._wish = Ending.NONE

    def request(self, wish: Ending) -> None:
        """Ask the workers to end at their next step; a stop is not taken back by a resize."""
        self._wish = max(self._wish, wish)

    def wish(self) -> Ending:
        """What the driver wishes."""
        return self._wish

    def post(self, attempt: int, line: str, steps: int, figures: dict[str, Any] | None = None) -> None:
        """Add a line for the person at the driver (empty: none), how many steps are done, a step's journal line."""
        if line:
            self._lines.append(line)
        if attempt != self._attempt:
            return
        self._steps = steps
        if figures:
            self._figures.append(figures)

    def beat(self, attempt: int, sign: SignOfLife) -> None:
        """A sign of life of one rank."""
        if attempt == self._attempt:
            self._signs[sign.rank] = sign

    def end(self, attempt: int, result: dict[str, Any]) -> None:
        """How the group ended."""
        if attempt == self._attempt:
            self._result = result

    def result(self) -> dict[str, Any] | None:
        """How the group ended; None while it runs, or when it died."""
        return self._result

    def take(self) -> tuple[list[str], list[dict[str, Any]], int, dict[int, SignOfLife]]:
        """Lines and journal lines since the last call, the steps done, and the ranks' last signs of life."""
        lines, self._lines = self._lines, []
        figures, self._figures = self._figures, []
        return lines, figures, self._steps, dict(self._signs)


class WorkerBoard(logging.Handler):
    """The board as one rank sees it; as a logging handler it carries warnings to the driver."""

    def __init__(self, board: Any, rank: int, attempt: int) -> None:
        super().__init__(logging.WARNING)
        self._board, self._attempt = board, attempt
        self._answer = board.wish.remote()
        self._sign = first_sign(rank)
        self._beating = threading.Thread(target=self._beat, name="signs-of-life", daemon=True)
        self._ended = threading.Event()
        self._beating.start()

    def mark(self, step: int, micro_batch: int, doing: Doing) -> None:
        """Note what this rank is at; the next sign of life carries it."""
        self._sign = replace(self._sign, step=step, micro_batch=micro_batch, doing=doing)

    def post(self, line: str, steps: int, figures: dict[str, Any] | None = None) -> None:
        """Post a line (empty: none), the steps done, and the journal line of a step."""
        self._board.post.remote(self._attempt, line, steps, figures)

    def end(self, result: Any) -> None:
        """Tell the driver how the group ended."""
        ray.get(self._board.end.remote(self._attempt, asdict(result)))

    def close(self) -> None:
        """No more signs of life."""
        self._ended.set()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Post a log record."""
        self.post(f"{record.levelname.lower()}: {record.getMessage()}", self._sign.step)

    def wish(self) -> Ending:
        """The newest answer that has arrived."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return Ending.NONE
        wish: Ending = ray.get(self._answer)
        self._answer = self._board.wish.remote()
        return wish

    def _beat(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            self._board.beat.remote(self._attempt, self._sign)


def elapsed_minutes(since: float) -> float:
    """Minutes since a reading of ``time.monotonic()``."""
    return (time.monotonic() - since) / 60
