"""Send MLflow what a dead server missed of a training run, from nothing but the run's `output`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.checkpoint import complete_steps, read_journal
from jobs.errors import UserError
from jobs.program import run_program
from jobs.tracking import TrackingConfig, series_entries, start_run
from pipeline import StorageError, exists, join, read_bytes

DESCRIPTION = "Send MLflow what a dead server missed of a training run; reads only the run's output."
SEND_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Which run, and where to."""

    output: str
    """Output of the training run."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is to be recorded; by default where it would have been."""


def run(config: SyncConfig) -> Mapping[str, Any]:
    """Find or create the run by its own key and send the steps that it lacks."""
    claim = _claim(config.output)
    journal = _journal(config.output)
    lines = [json.loads(line) for line in journal.splitlines()]
    report = _report(config.output)
    tracked = start_run(
        config.tracking,
        program=report.get("program", "training"),
        run_key=claim["run_key"],
        output=config.output,
        params=claim["config"],
        tags=claim["pins"].get("tags"),
    )
    tracked.log_series([entry for line in lines for entry in series_entries(line)])
    sent = tracked.finish("FINISHED" if report else "RUNNING", wait_seconds=SEND_SECONDS)
    if not sent:
        raise UserError(
            f"tracking.uri={config.tracking.uri}: MLflow took not everything within {SEND_SECONDS:.0f} seconds; "
            "check that the server answers and run the same command again"
        )
    return {"steps": len(lines), "run_id": tracked.run_id}


def _claim(output: str) -> dict[str, Any]:
    try:
        claim: dict[str, Any] = json.loads(read_bytes(join(output, "run.json")))
    except StorageError as error:
        raise UserError(f"output={output}: {error}; give the output of a training run") from error
    return claim


def _journal(output: str) -> str:
    if exists(join(output, "metrics.jsonl")):
        return read_bytes(join(output, "metrics.jsonl")).decode()
    steps = complete_steps(output)
    return read_journal(output, steps[-1]) if steps else ""


def _report(output: str) -> dict[str, Any]:
    place = join(output, "report.json")
    return json.loads(read_bytes(place)) if exists(place) else {}


def main() -> None:
    """Entry point of ``python -m jobs.sync``."""
    run_program("sync", SyncConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
