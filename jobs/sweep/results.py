"""The outcomes of a sweep's children side by side: a row each, as CSV and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.core.redaction import without_secrets
from jobs.core.text import plain
from jobs.reports.comparison import best_index
from jobs.sweep.children import FINISHED, Outcome
from jobs.sweep.plan import Child
from pipeline.storage.files import exists, join, read_json

FIGURES = (int, float)
Row = Mapping[str, Any]


def result_row(child: Child, outcome: Outcome) -> Row:
    """A child's figures, its own values of the swept keys, and its state."""
    path = join(child.config.output, "report.json")
    report = read_json(path) if exists(path) else {}
    figures = {key: value for key, value in report.items() if type(value) in FIGURES}
    return {**figures, **child.values, "child": child.name, "state": outcome.state}


def as_csv(rows: Sequence[Row]) -> bytes:
    """All rows, `child` and `state` first; a figure that a child lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in ("child", "state", *row)))
    # As objects: whole numbers stay whole beside a missing one.
    return pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False).encode()


def summary_table(command: str, keys: Sequence[str], rows: Sequence[Row]) -> Table:
    """A row per child: its values of the swept keys, its state, and the figures that differ, the best in green."""
    figures = _differing([{key: value for key, value in row.items() if type(value) in FIGURES} for row in rows])
    table = Table(title=plain(f"sweep of {command}: {len(rows)} children", "italic"), title_justify="left")
    for heading in (*keys, "state", *figures):
        table.add_column(plain(heading), overflow="fold")
    best = {figure: best_index(figure, [row.get(figure) for row in rows]) for figure in figures}
    for number, row in enumerate(rows):
        cells = [plain(row[key]) for key in (*keys, "state")]
        for figure in figures:
            number_shown = f"{row[figure]:.5g}" if figure in row else ""
            cells.append(plain(number_shown, "bold green" if best[figure] == number else ""))
        table.add_row(*cells)
    return table


def _differing(rows: Sequence[Row]) -> list[str]:
    """Keys whose values are not the same in all rows that have one."""
    keys = sorted({key for row in rows for key in row})
    return [key for key in keys if len({row[key] for row in rows if key in row}) > 1]


def refuse_unfinished(children: Sequence[Child], outcomes: Sequence[Outcome]) -> None:
    """End the sweep as its children ended.

    Raises:
        StopRequestedError: all unfinished children were stopped, or not started.
        UserError: all unfinished children were refused.
        WorkStoppedError: a child failed.
    """
    left = [(child.name, outcome) for child, outcome in zip(children, outcomes, strict=True)
            if outcome.state not in FINISHED]  # fmt: skip
    if not left:
        return
    reasons = "; ".join(f"{name}: {outcome.state} {without_secrets(outcome.last_line)}" for name, outcome in left)
    message = f"{len(left)} of {len(children)} children are not done ({reasons}); run the same command to resume them"
    states = {outcome.state for _, outcome in left}
    if states <= {"stopped", "not started"}:
        raise StopRequestedError(message)
    raise UserError(message) if states == {"refused"} else WorkStoppedError(message)
