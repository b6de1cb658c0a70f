"""Compare the runs of an MLflow experiment: what differs, which is best, and which run was made from which.

Usage: ``python -m jobs.compare tracking.uri=sqlite:////path/mlflow.db [experiment=NAME] [runs=[...]] [query=...]``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Run

from jobs.core.cli import Command, print_tables
from jobs.reports.comparison import (
    CommandTable,
    ComparedRun,
    best_run,
    by_command,
    check_best_by,
    command_table,
    link_tree,
    with_evaluations,
)
from jobs.reports.comparison_report import Curve, curves_picture, loss_curve, page, terminal_table, terminal_tree
from jobs.runs.search import find_runs, metric_history
from jobs.runs.tracking import COMMAND_TAG, OUTPUT_TAG, TrackingTarget
from pipeline.storage.files import join, write_bytes

# The nearest link wins: a tagging run carries its pretraining run too, but its weights are the fine-tuning run's.
PARENT_TAGS = ("finetune_run_id", "pretrain_run_id")


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare."""

    experiment: str = "hiera-video"
    """MLflow experiment."""
    runs: tuple[str, ...] = ()
    """Run ids (or their first characters) or run names. Default: the newest runs of each command."""
    query: str = ""
    """MLflow search filter, for example `metrics.top1 > 0.5 and tags.command = 'finetune'`."""
    best_by: str = ""
    """Metric that decides the best run of a command. Default: top1, else validation top1, nearest-neighbour top1 or
    loss, else training loss, else clips or windows per second; a loss only between runs of one model and loss."""
    output: str | None = None
    """Folder for `compare.html` (tables and loss curves, needs no network) and `curves.png`. Default: not written."""
    columns: int = 6
    """Most runs of one command that are shown, the newest first."""
    tracking: TrackingTarget = field(default_factory=TrackingTarget)
    """Where MLflow is."""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"columns={self.columns}: must be at least 1; give the number of runs to show")


def run(config: CompareConfig) -> dict[str, Any]:
    """Print the comparison; the report counts runs and names the best of each command."""
    client = config.tracking.client()
    runs = with_evaluations([compared(run) for run in find_runs(client, config.experiment, config.query, config.runs)])
    check_best_by(runs, config.best_by)
    commands = by_command(runs)
    tables = [command_table(command, of, config.best_by, config.columns) for command, of in commands.items()]
    print_tables(*map(terminal_table, tables), terminal_tree(link_tree(runs)))
    report = {"tracking.uri": client.tracking_uri, "experiment": config.experiment, "runs": len(runs)}
    best = {f"best {command}": best_run(of, config.best_by) for command, of in commands.items()}
    report |= {key: str(value) for key, value in best.items() if value}
    if config.output:
        for name, content in report_files(config, runs, tables).items():
            write_bytes(join(config.output, name), content)
            report[name] = join(config.output, name)
    return report


def compared(run: Run) -> ComparedRun:
    """What a comparison needs of an MLflow run."""
    info, tags = run.info, run.data.tags
    links = (tags.get(tag) for tag in PARENT_TAGS)
    return ComparedRun(
        run_id=info.run_id,
        command=tags.get(COMMAND_TAG, "other"),
        name=info.run_name or "",
        status=info.status.lower(),
        started=datetime.fromtimestamp(info.start_time / 1000, UTC),
        seconds=None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        params=run.data.params,
        metrics=run.data.metrics,
        parent=next((link for link in links if link and link != info.run_id), None),
        output=tags.get(OUTPUT_TAG, ""),
        data_digest=tags.get("data_digest", ""),
    )


def report_files(
    config: CompareConfig, runs: Sequence[ComparedRun], tables: Sequence[CommandTable]
) -> dict[str, bytes]:
    """The page, and the loss curves where runs have any, by file name."""
    client = config.tracking.client()
    curves: dict[str, list[Curve]] = {table.command: [] for table in tables}
    for run in (run for table in tables for run in table.runs):
        loss, speed = (metric_history(client, run.run_id, metric) for metric in ("loss", "clips_per_second"))
        if curve := loss_curve(run, loss, speed):
            curves[run.command].append(curve)
    picture = curves_picture(curves)
    facts = {"tracking": client.tracking_uri, "runs": str(len(runs)), "query": config.query}
    html = page(f"{config.experiment}: runs compared", facts, tables, link_tree(runs), picture)
    return {"compare.html": html, **({"curves.png": picture} if picture else {})}


main = Command("compare", CompareConfig, run, description="Compare the runs of an MLflow experiment.")


if __name__ == "__main__":
    main()
