"""How far a command has come: a bar on a terminal, a line now and then in a pipe, an event with `log=json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.core.cli import bars_are_drawn, console, echo
from jobs.core.events import emit, is_json

LOG_SECONDS = 20.0
ItemT = TypeVar("ItemT")


@contextmanager
def counted(activity: str, unit: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Takes how many units are done, and of how many once that is known."""
    columns = (TextColumn(activity), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    logged_at = time.monotonic()
    with Progress(*columns, console=console, disable=not bars_are_drawn()) as bar:
        task = bar.add_task("", total=total)

        def show(done: int, of: int | None) -> None:
            nonlocal logged_at
            bar.update(task, completed=done, total=of)
            if not bars_are_drawn() and time.monotonic() - logged_at > LOG_SECONDS:
                logged_at = time.monotonic()
                _log(activity, unit, done, of)

        yield show


def tracked(items: Iterable[ItemT], activity: str, unit: str, total: int) -> Iterator[ItemT]:
    """The items, counted as they are taken."""
    with counted(activity, unit, total) as show:
        for done, item in enumerate(items, 1):
            yield item
            show(done, total)


def _log(activity: str, unit: str, done: int, total: int | None) -> None:
    message = f"{activity}: {done}{'' if total is None else f' of {total}'} {unit}"
    if is_json():
        emit("progress", message, {"activity": activity, "unit": unit, "done": done, "total": total})
    else:
        echo(message)
