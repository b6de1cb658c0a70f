"""How a sweep ends, and its table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.sweep.children import Outcome
from jobs.sweep.results import as_csv, refuse_unfinished, summary_table


def children(count: int) -> Any:
    return [SimpleNamespace(name=f"seed={number}") for number in range(count)]


@pytest.mark.parametrize(
    ("states", "error"),
    [
        (["done", "stopped", "not started"], StopRequestedError),
        (["refused", "done before"], UserError),
        (["refused", "stopped"], WorkStoppedError),
        (["failed"], WorkStoppedError),
    ],
)
def test_a_sweep_ends_as_its_children_did(states: list[str], error: type[Exception]) -> None:
    outcomes = [Outcome(state, "uri=http://me:hunter2@h") for state in states]
    with pytest.raises(error, match="children are not done") as caught:
        refuse_unfinished(children(len(states)), outcomes)
    assert "hunter2" not in str(caught.value)


def test_a_finished_sweep_ends_well() -> None:
    refuse_unfinished(children(2), [Outcome("done"), Outcome("done before")])


def test_the_table_shows_figures_that_differ_and_the_csv_all() -> None:
    rows = [
        {"final_loss": 0.5, "clips": 16, "seed": "0", "child": "seed=0", "state": "done"},
        {"final_loss": 0.25, "clips": 16, "seed": "1", "child": "seed=1", "state": "done"},
        {"seed": "2", "child": "seed=2", "state": "failed"},
    ]
    console = Console(record=True, width=80, force_terminal=False)
    console.print(summary_table("pretrain", ["seed"], rows))
    text = console.export_text()
    assert "final_loss" in text
    assert "clips" not in text
    assert as_csv(rows).decode().splitlines() == [
        "child,state,final_loss,clips,seed",
        "seed=0,done,0.5,16,0",
        "seed=1,done,0.25,16,1",
        "seed=2,failed,,,2",
    ]
