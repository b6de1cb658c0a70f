"""Runs side by side, in the terminal and as a page: what differed, what came of it, and which run went into which.

Usage: ``python -m jobs.compare tracking.uri=sqlite:////path/mlflow.db [experiment=NAME] [runs=[...]] [query=...]``
"""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from jobs.core.cli import run_command
from jobs.core.errors import UserError, first_line
from jobs.reports.compare_html import curves_picture, loss_curve, page
from jobs.runs.mlflow_sender import FAILURES
from jobs.runs.tracking import COMMAND_TAG, OUTPUT_TAG, TrackingPlace
from pipeline.storage.files import join, write_bytes

PAGE = 500
ANSWER_LENGTH = 300
COMMAND_ORDER = ("prepare", "pretrain", "finetune", "evaluate", "tag")
# The nearest link wins: a tagging run knows its pretraining run too, but came from the fine-tuning run.
PARENT_TAGS = ("finetune_run_id", "pretrain_run_id")
# A direction only where more or less of it is plainly better; a step or a learning rate has no best.
HIGHER_IS_BETTER = ("top1", "top5", "accuracy", "average_precision", "per_second")
LOWER_IS_BETTER = ("loss", "error", "seconds", "failed", "not_scored", "peak_memory")
# Held-out figures before the training loss: mixed and smoothed labels make that one's level meaningless.
RANKED_BY = (
    "top1", "evaluate top1", "validation_top1", "validation_knn_top1", "validation_loss", "loss", "clips_per_second",
    "windows_per_second",
)  # fmt: skip
# A loss says nothing between runs that differ in what it measures: target, share of what is masked, mixed labels.
LOSS_SETTINGS = ("model", "mask_ratio", "label_smoothing", "mix.")
# Places differ between any two runs and explain nothing; the tree of links shows them.
NOT_COMPARED = ("output", "tracking")


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to lay side by side."""

    experiment: str = "hiera-video"
    """MLflow experiment."""
    runs: tuple[str, ...] = ()
    """Run ids (or their first characters) or run names. Default: the newest runs of each command."""
    query: str = ""
    """MLflow search filter, for example `metrics.top1 > 0.5 and tags.command = 'finetune'`."""
    best_by: str = ""
    """Metric that decides the best run of a command. Default: top1, else held-out top1, nearest-neighbour top1 or
    loss, else training loss, else clips or windows a second; a loss only between runs of one model and loss."""
    output: str | None = None
    """Where `compare.html` (tables and loss curves, without network access) and `curves.png` go. Default: nowhere."""
    columns: int = 6
    """Most runs of one command that are shown, the newest first."""
    tracking: TrackingPlace = field(default_factory=TrackingPlace)
    """Where MLflow is."""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"columns={self.columns}: must be at least 1; give the number of runs to show")


def run(config: CompareConfig) -> dict[str, Any]:
    """Print the comparison; the report counts runs and names the best of each command."""
    found = with_evaluations(find_runs(config))
    check_best_by(found, config.best_by)
    commands = by_command(found)
    place = config.tracking.client().tracking_uri
    report: dict[str, Any] = {"tracking.uri": place, "experiment": config.experiment, "runs": len(found)}
    shown: list[RenderableType] = []
    for command, runs in commands.items():
        shown.append(command_table(command, runs[: config.columns], len(runs), config.best_by))
        best = best_run(runs, config.best_by)
        if best is not None:
            report[f"best {command}"] = f"{short_id(best.run)} ({best.metric} {best.value:.4g})"
    shown.append(link_tree(found))
    Console().print(*shown, sep="\n")
    return report | (write_page(config, commands, shown) if config.output else {})


def write_page(
    config: CompareConfig, commands: Mapping[str, Sequence[Run]], shown: Sequence[RenderableType]
) -> dict[str, str]:
    """Write the page and the picture under ``output``; returns their places."""
    assert config.output is not None
    client = config.tracking.client()
    curves = {
        command: [
            curve
            for run in runs[: config.columns]
            if (curve := loss_curve(client, run, f"{short_id(run)} {run.info.run_name or ''}"))
        ]
        for command, runs in commands.items()
    }
    drawn = {command: some for command, some in curves.items() if some}
    picture = curves_picture(drawn) if drawn else None
    files = {"compare.html": page(f"{config.experiment}: runs compared", shown, picture)}
    if picture is not None:
        files["curves.png"] = picture
    for name, content in files.items():
        write_bytes(join(config.output, name), content)
    return {name: join(config.output, name) for name in files}


def find_runs(config: CompareConfig) -> list[Run]:
    """The wanted runs, newest first.

    Raises:
        UserError: MLflow does not answer, no such experiment, a query that it does not understand, a run that is not
            there, no run at all.
    """
    client = config.tracking.client()
    runs = _matching(client, _experiment_id(client, config.experiment), config.query)
    chosen = [_choose(runs, wanted) for wanted in config.runs] if config.runs else runs
    if not chosen:
        raise UserError(
            f"experiment={config.experiment}, query={config.query!r}: no run at {client.tracking_uri} matches; widen "
            "the query"
        )
    return chosen


def by_command(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs grouped by command, in the order in which the commands follow each other."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[command_of(run)].append(run)
    order = {command: place for place, command in enumerate(COMMAND_ORDER)}
    return dict(sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def differing_parameters(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Parameters whose value is not the same in all runs: key → value per run (None = not set)."""
    keys = [key for key in _keys(run.data.params for run in runs) if key.split(".")[0] not in NOT_COMPARED]
    values = {key: [run.data.params.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def direction(metric: str) -> int:
    """1 when more of a metric is better, -1 when less is, 0 when neither can be said."""
    if any(part in metric for part in HIGHER_IS_BETTER):
        return 1
    return -1 if any(part in metric for part in LOWER_IS_BETTER) else 0


def best_index(metric: str, values: Sequence[float | None]) -> int | None:
    """Place of the best value; None without a direction or without two different values to compare."""
    sign = direction(metric)
    rated = [(sign * value, -place) for place, value in enumerate(values) if value is not None and math.isfinite(value)]
    differ = len({value for value, _ in rated}) > 1
    return -max(rated)[1] if sign and differ else None


def with_evaluations(runs: Sequence[Run]) -> list[Run]:
    """The runs, fine-tuning runs with the metrics of their newest evaluation as `evaluate top1` and so on."""
    for evaluation in sorted(runs, key=lambda run: int(run.info.start_time)):
        if command_of(evaluation) == "evaluate":
            source = evaluation.data.tags.get("finetune_run_id")
            for tuned in (run for run in runs if run.info.run_id == source):
                tuned.data.metrics.update({f"evaluate {key}": value for key, value in evaluation.data.metrics.items()})
    return list(runs)


@dataclass(frozen=True)
class Best:
    """The best run of a command and the metric that says so."""

    run: Run
    metric: str
    value: float


def check_best_by(runs: Sequence[Run], best_by: str) -> None:
    """Refuse a metric that marks no run.

    Raises:
        UserError: no run recorded it, or neither more nor less of it is better.
    """
    ranking = sorted(metric for metric in {key for run in runs for key in run.data.metrics} if direction(metric))
    if best_by and best_by not in ranking:
        raise UserError(
            f"best_by={best_by}: no run has such a metric of which more or less is better; use one of "
            f"{', '.join(ranking) or 'none: these runs have no such metric'}"
        )


def best_run(runs: Sequence[Run], best_by: str) -> Best | None:
    """The best of at least two runs by ``best_by``, or by the first of `RANKED_BY` that they recorded."""
    for metric in (best_by,) if best_by else [metric for metric in RANKED_BY if is_comparable(metric, runs)]:
        values = [run.data.metrics.get(metric) for run in runs]
        place = best_index(metric, values)
        if place is not None:
            return Best(runs[place], metric, runs[place].data.metrics[metric])
    return None


def is_comparable(metric: str, runs: Sequence[Run]) -> bool:
    """Whether a metric means the same in all runs."""
    differ = "loss" in metric and any(key.startswith(LOSS_SETTINGS) for key in differing_parameters(runs))
    return not differ


def command_table(command: str, runs: Sequence[Run], total: int, best_by: str) -> Table:
    """One command's runs as columns; rows: facts, differing parameters, metrics (best in green)."""
    best = best_run(runs, best_by)
    among = f"the newest {len(runs)} of {total} runs" if total > len(runs) else f"{total} run{'s'[: total != 1]}"
    rated = sum(best.metric in run.data.metrics for run in runs) if best else 0
    marked = f"; ★ best by {best.metric}{f', which {rated} of them have' if rated < len(runs) else ''}" if best else ""
    table = Table(title=f"{command}: {among}{marked}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for run in runs:
        star = "★ " if best is not None and best.run is run else ""
        table.add_column(f"{star}{short_id(run)}\n{escape(run.info.run_name or '')}", overflow="fold")
    table.add_row("status", *[run.info.status.lower() for run in runs])
    table.add_row("started", *[_started(run) for run in runs])
    table.add_row("took", *[_duration(run) for run in runs], end_section=True)
    _add_parameters(table, runs)
    _add_metrics(table, runs)
    return table


def link_tree(runs: Sequence[Run]) -> Tree:
    """Pretraining → fine-tuning → evaluation and tagging, as the runs' own tags tell it."""
    tree = Tree("[bold]which run went into which")
    known = {run.info.run_id: run for run in runs}
    children: dict[str | None, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.info.start_time):
        children[_parent(run)].append(run)
    for outside in [parent for parent in children if parent is not None and parent not in known]:
        _grow(tree.add(f"{outside[:8]} (not among these runs)"), children[outside], children)
    _grow(tree, children[None], children)
    return tree


def command_of(run: Run) -> str:
    """The command that made a run."""
    return str(run.data.tags.get(COMMAND_TAG, "other"))


def short_id(run: Run) -> str:
    """The first characters of a run id, enough to name it in `runs=`."""
    return str(run.info.run_id)[:8]


def _grow(branch: Tree, runs: Sequence[Run], children: Mapping[str | None, list[Run]]) -> None:
    for run in runs:
        digest = run.data.tags.get("data_digest")
        data = f" data {digest[:8]}" if digest else ""
        place = escape(run.data.tags.get(OUTPUT_TAG, ""))
        leaf = branch.add(f"[bold]{command_of(run)}[/] {short_id(run)}{data} [dim]{place}[/]")
        _grow(leaf, children.get(run.info.run_id, []), children)


def _parent(run: Run) -> str | None:
    links = (run.data.tags.get(tag) for tag in PARENT_TAGS)
    return next((link for link in links if link and link != run.info.run_id), None)


def _add_parameters(table: Table, runs: Sequence[Run]) -> None:
    rows = differing_parameters(runs)
    for key, values in rows.items():
        table.add_row(key, *["" if value is None else escape(value) for value in values])
    if rows:
        table.add_section()


def _add_metrics(table: Table, runs: Sequence[Run]) -> None:
    for metric in _keys(run.data.metrics for run in runs):
        values = [run.data.metrics.get(metric) for run in runs]
        best = best_index(metric, values) if is_comparable(metric, runs) else None
        cells = ["" if value is None else f"{value:.5g}" for value in values]
        if best is not None:
            cells[best] = f"[bold green]{cells[best]}[/]"
        table.add_row(metric, *cells)


def _keys(dictionaries: Iterator[Mapping[str, Any]]) -> list[str]:
    return sorted({key for dictionary in dictionaries for key in dictionary})


def _experiment_id(client: MlflowClient, name: str) -> str:
    try:
        experiment = client.get_experiment_by_name(name)
        known = [] if experiment else [other.name for other in client.search_experiments()]
    except FAILURES as error:
        raise UserError(
            f"tracking.uri={client.tracking_uri}: does not answer: {_answer(error)}; check the server"
        ) from error
    if experiment is not None:
        return str(experiment.experiment_id)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
    raise UserError(f"experiment={name}: no such experiment at {client.tracking_uri}; {hint}")


def _matching(client: MlflowClient, experiment_id: str, query: str) -> list[Run]:
    try:
        return list(_search(client, experiment_id, query))
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise UserError(
                f"query={query!r}: MLflow does not understand it: {_answer(error)}; write for example "
                "\"metrics.top1 > 0.5 and tags.command = 'finetune'\""
            ) from error
        raise UserError(
            f"tracking.uri={client.tracking_uri}: does not answer: {_answer(error)}; check the server"
        ) from error


def _search(client: MlflowClient, experiment_id: str, query: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _answer(error: Exception) -> str:
    return first_line(error)[:ANSWER_LENGTH]


def _choose(runs: Sequence[Run], wanted: str) -> Run:
    matches = [run for run in runs if run.info.run_id.startswith(wanted) or run.info.run_name == wanted]
    if len(matches) == 1:
        return matches[0]
    names = [short_id(run) for run in (matches or runs)][:12]
    rule = "names more than one run" if matches else "no such run"
    raise UserError(f"runs={wanted}: {rule}; give the id of one of: {', '.join(names) or 'none'}")


def _started(run: Run) -> str:
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _duration(run: Run) -> str:
    if run.info.end_time is None:
        return ""
    minutes, seconds = divmod(round((run.info.end_time - run.info.start_time) / 1000), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def main() -> None:
    """Entry point."""
    run_command("compare", CompareConfig, run, description="Lay the runs of an MLflow experiment side by side.")


if __name__ == "__main__":
    main()
