"""A comparison of runs in the terminal, as loss curves, and as a page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from jobs.core.text import NAME_LENGTH, plain, shown
from jobs.reports.comparison import CommandTable, ComparedRun, Node
from jobs.reports.html import render
from jobs.reports.plots import Panel, curve_panels

POINTS_SHOWN = 400
UNITS = ("steps", "views", "hours")
LINKS_TITLE = "which run was made from which"

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The loss of one run; all arrays have one number per point."""

    name: str
    steps: Numbers
    """Optimizer steps done."""
    views: Numbers
    """Views consumed."""
    hours: Numbers
    """Hours of training, without pauses; NaN where the speed was not recorded."""
    loss: Numbers


def loss_curve(run: ComparedRun, losses: Mapping[int, float], speeds: Mapping[int, float]) -> Curve | None:
    """A training run's curve; None for a run without losses.

    Hours sum each step's own duration, so that a pause of a night between two starts does not count.

    Args:
        losses: step → loss.
        speeds: step → clips per second.
    """
    if not losses:
        return None
    batch = float(run.params.get("global_batch", "nan"))
    steps = np.array(sorted(losses), np.float64)
    speed = np.array([speeds.get(int(step), np.nan) for step in steps])
    seconds = np.diff(steps, prepend=0.0) * batch / speed
    points = (steps, steps * batch, seconds.cumsum() / 3600, np.array([losses[int(step)] for step in steps]))
    return Curve(shown(f"{run.short_id} {run.name}", NAME_LENGTH), *(_thinned(values) for values in points))


def curves_picture(commands: Mapping[str, Sequence[Curve]]) -> bytes | None:
    """A PNG: a row per command, a panel each for steps, views and hours; None where no command has curves."""
    rows = [[_panel(command, unit, curves) for unit in UNITS] for command, curves in commands.items() if curves]
    return curve_panels(rows) if rows else None


def terminal_table(table: CommandTable) -> Table:
    """One command's runs for the terminal; the best value of a metric in green."""
    title = plain(f"{table.command}: {table.caption}", "bold")
    view = Table(title=title, title_justify="left")
    view.add_column("", no_wrap=True)
    for run in table.runs:
        star = "★ " if table.is_best(run) else ""
        heading = Text.assemble(star, plain(run.short_id), "\n", plain(run.name))
        view.add_column(heading, overflow="fold")
    for section in table.sections:
        for row in section:
            cells = [plain(cell, "bold green" * (row.best == column)) for column, cell in enumerate(row.cells)]
            view.add_row(plain(row.name), *cells)
        view.add_section()
    return view


def terminal_tree(nodes: Sequence[Node]) -> Tree:
    """The tree of links for the terminal."""
    tree = Tree(f"[bold]{LINKS_TITLE}")
    _grow(tree, nodes)
    return tree


def page(
    title: str, facts: Mapping[str, str], tables: Sequence[CommandTable], links: Sequence[Node], curves: bytes | None
) -> bytes:
    """One HTML file with everything in it: tables, links, and the curves as PNG."""
    return render(
        "compare.html", title=title, facts=facts, tables=tables, links_title=LINKS_TITLE, links=links, curves=curves
    )


def _grow(branch: Tree, nodes: Sequence[Node]) -> None:
    for node in nodes:
        if node.run is None:
            leaf = branch.add(plain(f"{node.outside[:8]} (not among these runs)"))
        else:
            data = f" data {node.run.data_digest[:8]}" if node.run.data_digest else ""
            parts = (plain(node.run.command, "bold"), " ", plain(f"{node.run.short_id}{data} "),
                     plain(node.run.output, "dim"))  # fmt: skip
            leaf = branch.add(Text.assemble(*parts))
        _grow(leaf, node.children)


def _panel(command: str, unit: str, curves: Sequence[Curve]) -> Panel:
    lines = {curve.name: (getattr(curve, unit), curve.loss) for curve in curves}
    return Panel(f"{shown(command, NAME_LENGTH)}: loss by {unit}", unit, lines)


def _thinned(values: Numbers) -> Numbers:
    """At most 400 means of neighbours."""
    return np.array([part.mean() for part in np.array_split(values, min(len(values), POINTS_SHOWN))])
