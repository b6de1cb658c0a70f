"""The figures of a plan: name, value, unit, and what they rest on; as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from jobs.core.text import plain
from jobs.planning.unit_costs import ASSUMED, UnitCost

ARITHMETIC = "by its shapes"


@dataclass(frozen=True)
class Figure:
    """One line of a plan."""

    name: str
    value: float | str
    unit: str = ""
    basis: str = ARITHMETIC
    """Where the unit costs are from: measured (where, when), assumed, or none but the model's and the set's shapes."""

    @property
    def shown(self) -> str:
        """The value as the table has it."""
        if isinstance(self.value, str):
            return self.value
        if abs(self.value) >= 1000 or float(self.value).is_integer():
            return f"{self.value:,.0f}"
        return f"{self.value:.3g}"


def figure(name: str, value: float, unit: str, *costs: UnitCost) -> Figure:
    """A figure with the basis of its unit costs."""
    return Figure(name, value, unit, basis_of(*costs))


def basis_of(*costs: UnitCost) -> str:
    """`assumed` where any is, and every measurement."""
    bases = {cost.basis for cost in costs}
    return "; ".join(sorted(bases, key=lambda basis: (basis != ASSUMED, basis)))


def as_table(title: str, figures: Sequence[Figure]) -> Table:
    """For a person."""
    table = Table("", "", "unit", "rests on", title=plain(title), title_justify="left")
    table.columns[1].justify = "right"
    for line in figures:
        table.add_row(*map(plain, (line.name, line.shown, line.unit, line.basis)))
    return table


def as_json(title: str, figures: Sequence[Figure]) -> str:
    """For a program."""
    return json.dumps({"plan": title, "figures": list(map(asdict, figures))}, indent=1)
