"""Run a command with every combination of listed values: child runs of one MLflow parent, resumable as a whole.

Usage: ``python -m jobs.sweep COMMAND [RECIPE] key=[a,b,c] ... output=URI [parallel=2]``
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.core.cli import Command, print_tables
from jobs.core.config import config_dict, flatten
from jobs.runs.claim import claim_output, is_free
from jobs.runs.tracking import PARENT_RUN_VARIABLE, recorded, start_run, tracking_uri
from jobs.sweep.children import Children, parallel_runs
from jobs.sweep.plan import USAGE, SweepConfig, plan_children, read_arguments
from jobs.sweep.results import as_csv, refuse_unfinished, result_row, summary_table
from pipeline.storage.files import absolute, join, write_bytes

DESCRIPTION = (
    "Run a command with every combination of listed values. The same command again resumes the children that were "
    "killed and skips those that are done."
)
MLFLOW_WAIT_SECONDS = 60.0  # a child that is recorded without its parent stays without it


@dataclass(frozen=True)
class SweepClaim:
    """What makes two sweeps the same."""

    job: str
    keys: dict[str, Any]
    settings: dict[str, Any]
    """The first child's resolved configuration, which includes what its recipe says."""


def run(config: SweepConfig) -> dict[str, Any]:
    """Run the children that are not done, and put the outcomes of all side by side."""
    children = plan_children(config)
    output, first = absolute(config.output), children[0].config
    claim = claim_output(output, SweepClaim(config.job, _bound(config.keys), _bound(flatten(config_dict(first)))))
    tracking = start_run(
        first.tracking,
        command="sweep",
        run_key=claim.run_key,
        output=output,
        params={"job": config.job, "recipe": config.recipe, **config.keys},
    )
    with recorded(tracking):
        parent_run_id = tracking.wait_for_id(MLFLOW_WAIT_SECONDS)
        # By environment, not by argument: a URI may hold a password, and others may read the command line.
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": tracking_uri(first.tracking, output) or "none",
            **({PARENT_RUN_VARIABLE: parent_run_id} if parent_run_id else {}),
        }
        processes = Children(config.job, environment)
        outcomes = processes.run_all(children, config.parallel or parallel_runs(first))
        rows = [result_row(child, outcome) for child, outcome in zip(children, outcomes, strict=True)]
        write_bytes(join(output, "children.csv"), as_csv(rows))
        print_tables(summary_table(config.job, list(children[0].values), rows))
        refuse_unfinished(children, outcomes)
    tracking.log_metrics({"children": len(children)})
    tracking.finish()
    return {"children": len(children), "table": join(output, "children.csv"), "mlflow_run_id": tracking.run_id}


def dry_run(config: SweepConfig) -> dict[str, Any]:
    """The children and their commands."""
    children = plan_children(config)
    prefix = f"python -m jobs.{config.job}"
    return {
        "side by side": config.parallel or parallel_runs(children[0].config),
        **{child.name: f"{prefix} {' '.join(child.arguments)}" for child in children},
    }


def _bound(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is computed."""
    return {key: value for key, value in settings.items() if not is_free(key)}


main = Command("sweep", SweepConfig, run, description=DESCRIPTION, dry_run=dry_run, load=read_arguments, usage=USAGE)
