"""The thread between the driver and its workers: a request to stop goes down, lines and progress come up.

One small actor a run. Workers never wait for it: they post without asking for an answer and look only at answers that
have arrived. On the driver one thread prints what was posted, and hands SIGTERM on.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobs.program import console

SECONDS_BETWEEN_LOOKS = 0.5


class RunBoard:
    """Holds whether the run was asked to stop, and what the workers posted since the driver looked."""

    def __init__(self) -> None:
        self._stop_requested = False
        self._lines: list[str] = []
        self._steps = 0
        self._result: dict[str, Any] | None = None

    def request_stop(self) -> None:
        """Ask the run to stop at its next step."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Whether it was asked to."""
        return self._stop_requested

    def post(self, line: str, steps: int) -> None:
        """Add a line for the person at the driver (empty: none), and how many steps are done."""
        self._steps = max(self._steps, steps)
        if line:
            self._lines.append(line)

    def end(self, result: dict[str, Any]) -> None:
        """How the run ended."""
        self._result = result

    def result(self) -> dict[str, Any] | None:
        """How the run ended; None while it goes on."""
        return self._result

    def take(self) -> tuple[list[str], int]:
        """The lines since the last call, and the steps done."""
        lines, self._lines = self._lines, []
        return lines, self._steps


class WorkerBoard(logging.Handler):
    """The board as one rank sees it; as a logging handler it carries warnings to the driver."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board
        self._answer = board.stop_requested.remote()
        self._steps = 0

    def post(self, line: str, steps: int) -> None:
        """Post a line (empty: none) and the steps done."""
        self._steps = steps
        self._board.post.remote(line, steps)

    def end(self, result: dict[str, Any]) -> None:
        """Tell the driver how the run ended."""
        ray.get(self._board.end.remote(result))

    def emit(self, record: logging.LogRecord) -> None:
        """Post a log record."""
        self.post(f"{record.levelname.lower()}: {record.getMessage()}", self._steps)

    def stop_requested(self) -> bool:
        """The newest answer that has arrived."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return False
        requested = bool(ray.get(self._answer))
        self._answer = self._board.stop_requested.remote()
        return requested


@contextmanager
def watched_run(name: str, first_step: int, total_steps: int) -> Iterator[Any]:
    """A `RunBoard` that is printed while the context lasts, and that SIGTERM at this process turns to stop."""
    board = ray.remote(num_cpus=0)(RunBoard).remote()
    asked, ended = threading.Event(), threading.Event()
    former = signal.getsignal(signal.SIGTERM)

    def remember(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    with _progress() as progress:
        task = progress.add_task(name, total=total_steps, completed=first_step)

        def look() -> None:
            lines, steps = ray.get(board.take.remote())
            for line in lines:
                progress.console.print(escape(line), highlight=False, soft_wrap=True)
            progress.update(task, completed=max(first_step, steps))

        def watch() -> None:  # a thread, because a signal handler must not call into Ray
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                if asked.is_set():
                    board.request_stop.remote()
                look()

        signal.signal(signal.SIGTERM, remember)
        watcher = threading.Thread(target=watch, name="board-watcher", daemon=True)
        watcher.start()
        try:
            yield board
        finally:
            ended.set()
            watcher.join()
            look()
            signal.signal(signal.SIGTERM, former)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
