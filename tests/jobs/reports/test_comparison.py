"""What differs between runs, which is best, which was made from which."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from jobs.core.errors import UserError
from jobs.reports.comparison import (
    ComparedRun,
    Node,
    best_index,
    best_run,
    by_command,
    check_best_by,
    command_table,
    differing_parameters,
    link_tree,
    with_evaluations,
)


def _started(minute: int) -> datetime:
    return datetime(2026, 1, 1, 12, minute, tzinfo=UTC)


PRETRAIN = ComparedRun("p" * 32, "pretrain", started=_started(0), params={"seed": "1"}, metrics={"loss": 0.5})
TUNED = [
    ComparedRun(
        f"tune{number}".ljust(32, "0"),
        "finetune",
        started=_started(1 + number),
        seconds=61.4,
        params={"seed": "1", "learning_rate": rate, "output": f"/{number}"},
        metrics={"validation_top1": top1, "loss": loss},
        parent=PRETRAIN.run_id,
    )
    for number, (rate, top1, loss) in enumerate((("8e-4", 0.7, 0.3), ("4e-4", 0.9, 0.9)))
]
EVALUATED = [
    ComparedRun(
        f"evaluate{tuned.run_id}",
        "evaluate",
        started=_started(10),
        metrics={"mean_class_accuracy": tuned.metrics["validation_top1"] / 2},
        parent=tuned.run_id,
    )
    for tuned in TUNED
]
RUNS = [*EVALUATED, *reversed(TUNED), PRETRAIN]


def test_commands_follow_each_other() -> None:
    other = ComparedRun("x", "other")
    assert list(by_command([other, *RUNS])) == ["pretrain", "finetune", "evaluate", "other"]


def test_only_differing_parameters_are_shown_and_the_best_run_is_marked() -> None:
    runs = by_command(with_evaluations(RUNS))["finetune"]
    assert differing_parameters(runs) == {"learning_rate": ["4e-4", "8e-4"]}
    table = command_table("finetune", runs)
    assert table.best is not None
    assert (table.best.metric, table.best.run.params["learning_rate"]) == ("validation_top1", "4e-4")
    facts, parameters, metrics = table.sections
    assert [row.cells[0] for row in facts] == ["finished", "2026-01-01 12:02", "1 min 01 s"]
    assert [row.name for row in parameters] == ["learning_rate"]
    # The better run has the higher loss.
    best = {row.name: row.best for row in metrics}
    assert best == {"evaluate mean_class_accuracy": 0, "loss": 1, "validation_top1": 0}
    assert table.caption == "2 runs; ★ best by validation_top1"


def test_the_newest_columns_are_shown() -> None:
    table = command_table("finetune", list(reversed(TUNED)), columns=1)
    assert (table.caption, table.runs) == ("the newest 1 of 2 runs", [TUNED[1]])


def test_the_newest_evaluation_counts() -> None:
    again = ComparedRun(
        "again", "evaluate", started=_started(20), metrics={"mean_class_accuracy": 1.0}, parent=TUNED[0].run_id
    )
    _, tuned = (run for run in with_evaluations([again, *RUNS]) if run.command == "finetune")
    assert tuned.metrics["evaluate mean_class_accuracy"] == 1.0
    assert "evaluate mean_class_accuracy" not in TUNED[0].metrics


def test_a_loss_ranks_no_runs_that_measure_something_else() -> None:
    runs = [
        ComparedRun(
            target,
            "pretrain",
            params={"model_overrides.target": target},
            metrics={"validation_loss": loss, "loss": loss, **more},
        )
        for target, loss, more in (("pixels", 0.6, {}), ("hog", 0.02, {}))
    ]
    assert best_run(runs) is None
    assert best_run(runs, "validation_loss") is not None
    metrics = command_table("pretrain", runs).sections[-1]
    assert [(row.name, row.best) for row in metrics] == [("loss", None), ("validation_loss", None)]
    ranked = [
        ComparedRun(run.run_id, "pretrain", params=run.params, metrics={**run.metrics, "validation_knn_top1": top1})
        for run, top1 in zip(runs, (0.9, 0.2), strict=True)
    ]
    assert str(best_run(ranked)) == "pixels (validation_knn_top1 0.9)"


def test_the_tree_hangs_evaluation_under_its_finetuning_under_its_pretraining() -> None:
    def shape(nodes: Sequence[Node]) -> list[tuple[str, object]]:
        return [(node.run.command if node.run else node.outside, shape(node.children)) for node in nodes]

    tuned = ("finetune", [("evaluate", [])])
    assert shape(link_tree(RUNS)) == [("pretrain", [tuned, tuned])]
    assert shape(link_tree(TUNED[:1])) == [(PRETRAIN.run_id, [("finetune", [])])]


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("top1", [0.1, 0.9, 0.9], 1),
        ("loss", [0.1, float("nan"), 0.05], 2),
        ("learning_rate", [0.1, 0.2], None),
        ("top1", [0.5, None], None),
        ("top1", [0.5, 0.5], None),
    ],
)
def test_best_has_a_direction(metric: str, values: Sequence[float | None], best: int | None) -> None:
    assert best_index(metric, values) == best


@pytest.mark.parametrize("metric", ["held_out_topp1", "learning_rate"])
def test_a_metric_that_ranks_nothing_is_a_mistake(metric: str) -> None:
    with pytest.raises(
        UserError, match=rf"^best_by={metric}: no run has such a metric .* use one of loss, .*validation_top1"
    ):
        check_best_by(RUNS, metric)
    check_best_by(RUNS, "loss")
    assert str(best_run(TUNED, "loss")).endswith("(loss 0.3)")
