"""One command with every combination of listed values: child runs of one MLflow parent, resumable as a whole.

Usage: ``python -m jobs.sweep JOB [RECIPE] key=[a,b,c] ... output=PLACE [parallel=2]``
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.compare import best_index
from jobs.core.cli import console, run_command
from jobs.core.config import config_dict, flatten
from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.core.ray_cluster import LOCAL_CPUS, connect
from jobs.core.redaction import without_secrets
from jobs.core.signals import stopping_on_sigterm
from jobs.runs.claim import claim_output, is_free
from jobs.runs.tracking import PARENT_RUN_VARIABLE, recorded, start_run, tracking_uri
from jobs.sweep_plan import Child, SweepConfig, plan_children, read_arguments
from jobs.training.config import TrainConfig
from pipeline.datasets.train import stream_cpus
from pipeline.storage.files import absolute, exists, join, read_bytes, write_bytes

DESCRIPTION = (
    "Run a command with every combination of listed values. The same command again runs what is not finished: a child "
    "that was killed goes on, one that is done is left alone."
)
MLFLOW_WAIT_SECONDS = 60.0  # a child without its parent stays so
# A child that is still being started has no handler: it dies of the signal.
STATES = {0: "done", 2: "refused", 3: "stopped", -signal.SIGTERM: "stopped"}
FIGURES = (int, float)


@dataclass(frozen=True)
class SweepClaim:
    """What makes two sweeps the same."""

    job: str
    keys: dict[str, Any]
    settings: dict[str, Any]
    """The first child's resolved configuration, which knows the recipe's content."""


@dataclass(frozen=True)
class Outcome:
    """What came of a child."""

    state: str
    """`done`, `done before`, `refused` (its arguments), `stopped`, `failed`, `not started`."""
    last_line: str = ""
    """What it printed last."""


@dataclass
class Children:
    """The processes of a sweep; asked to stop together."""

    command: str
    environment: Mapping[str, str]
    stopping: threading.Event = field(default_factory=threading.Event)
    _running: list[subprocess.Popen[str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, child: Child, parent_run_id: str | None) -> Outcome:
        """Run one child to its end, passing on what it prints."""
        if exists(join(child.config.output, "report.json")):
            return Outcome("done before")
        process = self._start(child.arguments, {PARENT_RUN_VARIABLE: parent_run_id} if parent_run_id else {})
        if process is None:
            return Outcome("not started")
        last_line = ""
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                last_line = line.rstrip()
                console.print(f"[dim]{escape(child.name)}[/] {escape(last_line)}", highlight=False, soft_wrap=True)
        code = process.wait()
        if code < 0:  # so it could not say why
            last_line = f"by {signal.Signals(-code).name}"
        return Outcome(STATES.get(code, "failed"), last_line)

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str] | None:
        with self._lock:
            if self.stopping.is_set():
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{self.command}", *arguments],
                env={**self.environment, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self._running.append(process)
            return process

    def stop(self) -> None:
        """Start no other, and ask those that run to save and end."""
        with self._lock:
            self.stopping.set()
            for process in self._running:
                process.terminate()  # nothing, for one that has ended


def run(config: SweepConfig) -> dict[str, Any]:
    """Run the children that are not done, and lay side by side what came of all."""
    children = plan_children(config)
    output, first = absolute(config.output), children[0].config
    claim = claim_output(output, SweepClaim(config.job, _bound(config.keys), _bound(flatten(config_dict(first)))))
    uri = tracking_uri(first.tracking, output)
    tracking = start_run(
        first.tracking,
        command="sweep",
        run_key=claim.run_key,
        output=output,
        params={"job": config.job, "recipe": config.recipe, **config.keys},
    )
    # A place with a password belongs in no command line.
    processes = Children(config.job, {**os.environ, "MLFLOW_TRACKING_URI": uri or "none"})
    with recorded(tracking):
        parent_run_id = tracking.wait_for_id(MLFLOW_WAIT_SECONDS)
        outcomes = run_all(children, processes, parent_run_id, config.parallel or _room_for(first))
        rows = [_row(child, outcome) for child, outcome in zip(children, outcomes, strict=True)]
        write_bytes(join(output, "children.csv"), _csv(rows))
        Console().print(summary_table(config, children, rows))
        _refuse_unfinished(children, outcomes)
    tracking.log_metrics({"children": len(children)})
    tracking.finish()
    return {"children": len(children), "table": join(output, "children.csv"), "mlflow_run_id": tracking.run_id}


def run_all(children: Sequence[Child], processes: Children, parent_run_id: str | None, parallel: int) -> list[Outcome]:
    """What came of each child, so many side by side; SIGTERM goes to all that run, and they are waited for."""
    with ThreadPoolExecutor(min(parallel, len(children))) as pool:
        pending = [pool.submit(processes.run, child, parent_run_id) for child in children]
        try:
            with stopping_on_sigterm("children save their work, the same command goes on"):
                while not all(future.done() for future in pending):
                    time.sleep(0.1)
        except (StopRequestedError, KeyboardInterrupt):
            processes.stop()
    return [future.result() for future in pending]


def summary_table(config: SweepConfig, children: Sequence[Child], rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per child: its values, its state, and the figures that differ, the best in green."""
    keys = list(children[0].values)
    figures = _differing([{key: value for key, value in row.items() if type(value) in FIGURES} for row in rows])
    table = Table(title=f"sweep of {config.job}: {len(rows)} children", title_justify="left")
    for heading in (*keys, "state", *figures):
        table.add_column(heading, overflow="fold")
    best = {figure: best_index(figure, [row.get(figure) for row in rows]) for figure in figures}
    for number, row in enumerate(rows):
        cells = [escape(str(row[key])) for key in (*keys, "state")]
        for figure in figures:
            shown = f"{row[figure]:.5g}" if figure in row else ""
            cells.append(f"[bold green]{shown}[/]" if best[figure] == number else shown)
        table.add_row(*cells)
    return table


def dry_run(config: SweepConfig) -> dict[str, Any]:
    """The children and their commands."""
    children = plan_children(config)
    prefix = f"python -m jobs.{config.job}"
    return {
        "side by side": config.parallel or _room_for(children[0].config),
        **{child.name: f"{prefix} {' '.join(child.arguments)}" for child in children},
    }


def _bound(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is computed."""
    return {key: value for key, value in settings.items() if not is_free(key)}


def _row(child: Child, outcome: Outcome) -> dict[str, Any]:
    place = join(child.config.output, "report.json")
    report = json.loads(read_bytes(place)) if exists(place) else {}
    figures = {key: value for key, value in report.items() if type(value) in FIGURES}
    return {**figures, **child.values, "child": child.name, "state": outcome.state}


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all rows that have one."""
    keys = sorted({key for row in rows for key in row})
    return [key for key in keys if len({row[key] for row in rows if key in row}) > 1]


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = dict.fromkeys(key for row in rows for key in ("child", "state", *row))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _refuse_unfinished(children: Sequence[Child], outcomes: Sequence[Outcome]) -> None:
    """The sweep ends as its children did."""
    left = [(child, outcome) for child, outcome in zip(children, outcomes, strict=True)
            if outcome.state not in ("done", "done before")]  # fmt: skip
    if not left:
        return
    told = "; ".join(f"{child.name}: {outcome.state} {without_secrets(outcome.last_line)}" for child, outcome in left)
    message = f"{len(left)} of {len(children)} children are not done ({told}); the same command runs these again"
    states = {outcome.state for _, outcome in left}
    if states <= {"stopped", "not started"}:
        raise StopRequestedError(message)
    raise UserError(message) if states == {"refused"} else WorkStoppedError(message)


def _room_for(config: Any) -> int:
    """How many such runs this machine, or the cluster, has CPUs and GPUs for. Scoring alone takes all there is."""
    if not isinstance(config, TrainConfig):
        return 1
    offered = _resources()
    workers, beside = config.worker_range[-1], stream_cpus(config.decode_actors)
    if offered.get("GPU", 0):
        return max(1, int(min(offered["GPU"] // workers, offered["CPU"] // beside)))
    return max(1, int(offered["CPU"] // (workers + beside)))


def _resources() -> Mapping[str, float]:
    if "RAY_ADDRESS" not in os.environ:
        return {"CPU": LOCAL_CPUS, "GPU": torch.cuda.device_count()}
    connect()
    offered: Mapping[str, float] = ray.cluster_resources()
    ray.shutdown()
    return offered


def main() -> None:
    """Entry point."""
    run_command(
        "sweep",
        SweepConfig,
        run,
        description=DESCRIPTION,
        dry_run=dry_run,
        load=read_arguments,
        usage="JOB [RECIPE] key=[a,b,c] ... output=PLACE",
    )


if __name__ == "__main__":
    main()
