"""Runs side by side: which parameters differ, which run is best, which run was made from which."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from jobs.core.errors import UserError

COMMAND_ORDER = ("prepare", "pretrain", "finetune", "evaluate", "tag")
# A direction only where more or less of it is plainly better; a step or a learning rate has no best.
HIGHER_IS_BETTER = ("top1", "top5", "accuracy", "average_precision", "per_second")
LOWER_IS_BETTER = ("loss", "error", "seconds", "failed", "not_scored", "peak_memory")
# Validation metrics before the training loss: mixed and smoothed labels make that one's level meaningless.
RANKED_BY = (
    "top1", "evaluate top1", "validation_top1", "validation_knn_top1", "validation_loss", "loss", "clips_per_second",
    "windows_per_second",
)  # fmt: skip
# Losses are comparable only between runs that measure the same: target, share of what is masked, mixed labels.
LOSS_SETTINGS = ("model", "mask_ratio", "label_smoothing", "mix.")
# Paths differ between any two runs and explain nothing; the tree of links shows them.
NOT_COMPARED = ("output", "tracking")


@dataclass(frozen=True)
class ComparedRun:
    """A recorded run, as far as a comparison needs it."""

    run_id: str
    command: str
    name: str = ""
    status: str = "finished"
    started: datetime = datetime.min
    seconds: float | None = None
    """How long it took; None while it runs."""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None
    """Id of the run whose weights it started from."""
    output: str = ""
    data_digest: str = ""

    @property
    def short_id(self) -> str:
        """The first characters of the id, enough to name the run in `runs=`."""
        return self.run_id[:8]


@dataclass(frozen=True)
class Best:
    """The best run of a command and the metric that decides."""

    run: ComparedRun
    metric: str

    def __str__(self) -> str:
        return f"{self.run.short_id} ({self.metric} {self.run.metrics[self.metric]:.4g})"


@dataclass(frozen=True)
class Row:
    """One line of a table: a cell per run, and which of them is the best."""

    name: str
    cells: Sequence[str]
    best: int | None = None


@dataclass(frozen=True)
class CommandTable:
    """One command's runs as columns, best run marked; rows in sections: facts, differing parameters, metrics."""

    command: str
    runs: Sequence[ComparedRun]
    total: int
    """Runs of the command, shown or not."""
    best: Best | None
    sections: Sequence[Sequence[Row]]

    @property
    def caption(self) -> str:
        """How many runs are shown, and by which metric the best is marked."""
        hidden, shown = self.total > len(self.runs), len(self.runs)
        among = f"the newest {shown} of {self.total} runs" if hidden else f"{shown} run{'s' * (shown != 1)}"
        if self.best is None:
            return among
        rated = sum(self.best.metric in run.metrics for run in self.runs)
        limit = f", which {rated} of them have" if rated < shown else ""
        return f"{among}; ★ best by {self.best.metric}{limit}"

    def is_best(self, run: ComparedRun) -> bool:
        """Whether the run is the marked one."""
        return self.best is not None and self.best.run is run


@dataclass(frozen=True)
class Node:
    """A run in the tree of links, or the id of a run that is not among those compared."""

    run: ComparedRun | None
    outside: str
    children: Sequence[Node]


def by_command(runs: Sequence[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """Runs grouped by command, in the order in which the commands follow each other."""
    groups: dict[str, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        groups[run.command].append(run)
    order = {command: number for number, command in enumerate(COMMAND_ORDER)}
    return dict(sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def with_evaluations(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The runs, fine-tuning runs with the metrics of their newest evaluation as `evaluate top1` and so on."""
    metrics: dict[str | None, dict[str, float]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run.started):
        if run.command == "evaluate":
            metrics[run.parent] |= {f"evaluate {key}": value for key, value in run.metrics.items()}
    return [
        replace(run, metrics={**run.metrics, **metrics[run.run_id]}) if run.command == "finetune" else run
        for run in runs
    ]


def differing_parameters(runs: Sequence[ComparedRun]) -> dict[str, list[str | None]]:
    """Parameters whose value is not the same in all runs: key → value per run (None = not set)."""
    keys = [key for key in _keys(run.params for run in runs) if key.split(".")[0] not in NOT_COMPARED]
    values = {key: [run.params.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def direction(metric: str) -> int:
    """1 when more of a metric is better, -1 when less is, 0 when neither is."""
    if any(part in metric for part in HIGHER_IS_BETTER):
        return 1
    return -1 if any(part in metric for part in LOWER_IS_BETTER) else 0


def best_index(metric: str, values: Sequence[float | None]) -> int | None:
    """Index of the best value; None without a direction or without two different values to compare."""
    sign = direction(metric)
    rated = [(sign * value, -index) for index, value in enumerate(values) if value is not None and math.isfinite(value)]
    differ = len({value for value, _ in rated}) > 1
    return -max(rated)[1] if sign and differ else None


def check_best_by(runs: Sequence[ComparedRun], best_by: str) -> None:
    """Reject a metric that cannot rank the runs.

    Raises:
        UserError: no run recorded it, or neither more nor less of it is better.
    """
    ranking = [metric for metric in _keys(run.metrics for run in runs) if direction(metric)]
    if best_by and best_by not in ranking:
        raise UserError(
            f"best_by={best_by}: no run has such a metric of which more or less is better; use one of "
            f"{', '.join(ranking) or 'none: these runs have no such metric'}"
        )


def best_run(runs: Sequence[ComparedRun], best_by: str = "") -> Best | None:
    """The best of at least two runs by ``best_by``, or by the first of `RANKED_BY` that they recorded."""
    for metric in (best_by,) if best_by else [metric for metric in RANKED_BY if is_comparable(metric, runs)]:
        index = best_index(metric, [run.metrics.get(metric) for run in runs])
        if index is not None:
            return Best(runs[index], metric)
    return None


def is_comparable(metric: str, runs: Sequence[ComparedRun]) -> bool:
    """Whether a metric means the same in all runs."""
    return "loss" not in metric or not any(key.startswith(LOSS_SETTINGS) for key in differing_parameters(runs))


def command_table(
    command: str, runs: Sequence[ComparedRun], best_by: str = "", columns: int | None = None
) -> CommandTable:
    """The comparison of one command's runs, newest first, of which at most ``columns`` are shown."""
    shown = runs[:columns]
    facts = [
        Row("status", [run.status for run in shown]),
        Row("started", [f"{run.started:%Y-%m-%d %H:%M}" for run in shown]),
        Row("took", [_duration(run.seconds) for run in shown]),
    ]
    parameters = [
        Row(key, ["" if value is None else value for value in values])
        for key, values in differing_parameters(shown).items()
    ]
    metrics = [_metric_row(metric, shown) for metric in _keys(run.metrics for run in shown)]
    sections = [section for section in (facts, parameters, metrics) if section]
    return CommandTable(command, shown, len(runs), best_run(shown, best_by), sections)


def link_tree(runs: Sequence[ComparedRun]) -> list[Node]:
    """Pretraining → fine-tuning → evaluation and tagging, by the links that the runs carry."""
    known = {run.run_id for run in runs}
    children: dict[str | None, list[ComparedRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.started):
        children[run.parent].append(run)

    def grown(parent: str | None) -> list[Node]:
        return [Node(run, "", grown(run.run_id)) for run in children.get(parent, ())]

    outside = [parent for parent in children if parent is not None and parent not in known]
    return [*(Node(None, parent, grown(parent)) for parent in outside), *grown(None)]


def _metric_row(metric: str, runs: Sequence[ComparedRun]) -> Row:
    values = [run.metrics.get(metric) for run in runs]
    best = best_index(metric, values) if is_comparable(metric, runs) else None
    return Row(metric, ["" if value is None else f"{value:.5g}" for value in values], best)


def _keys(dictionaries: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({key for dictionary in dictionaries for key in dictionary})


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
