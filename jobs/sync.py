"""Send MLflow the steps and files of a run that it lacks, from the run's `output` alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from jobs.checkpoints.store import complete_steps, read_journal
from jobs.core.cli import Command, replace
from jobs.core.errors import UserError, WorkStoppedError
from jobs.runs.mlflow_sender import Run
from jobs.runs.tracking import URI_REQUIRED, TrackingConfig, data_entity, start_run, tracking_uri
from pipeline.storage.files import StorageError, exists, join, list_files, read_bytes

DESCRIPTION = (
    "Send MLflow the steps and files of a run that it lacks, because the server was down; reads only the run's output. "
    "The default server is the run's own; give tracking.uri to send them to another."
)
ANSWER_SECONDS = 30.0
SEND_SECONDS = 600.0
PICTURES = (".png",)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Which run to send, and where to."""

    output: str
    """Output of the run."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def run(config: SyncConfig) -> Mapping[str, Any]:
    """Find or create the run by its own key and send what it lacks.

    Raises:
        UserError: ``output`` holds no run.
        WorkStoppedError: the server does not respond; the same command sends the rest later.
    """
    claim, report = _claim(config.output), _record(join(config.output, "report.json"), json.loads)
    lines = [json.loads(line) for line in _journal(config.output).splitlines()]
    # Of a run that ended before its configuration was written, the part that the claim has.
    params = _record(join(config.output, "config.yaml"), yaml.safe_load)
    tracking = _tracking(config.tracking, params.get("tracking", {}))
    command = report.get("command") or claim["pins"].get("command", "training")
    # The tags of the run's first start name its revision (`claim_output`); this checkout's is another.
    tracked = start_run(tracking, command=command, run_key=claim["run_key"], output=config.output,
                        params=params or claim["config"], tags=claim["pins"].get("tags"), resumes=False,
                        source={})  # fmt: skip
    if tracking_uri(tracking, config.output) is None:
        raise UserError(URI_REQUIRED)
    if tracked.wait_for_id(ANSWER_SECONDS) is None:
        tracked.leave()
        raise WorkStoppedError(
            f"tracking.uri={tracking_uri(tracking, config.output)}: no answer within {ANSWER_SECONDS:.0f} seconds; "
            "start the server, or give another tracking.uri, and run the same command again"
        )
    _send(tracked, config.output, claim, report, lines)
    ended = bool(report) or exists(join(config.output, "metrics.jsonl"))
    sent = tracked.finish(wait_seconds=SEND_SECONDS) if ended else tracked.drain(SEND_SECONDS)
    if not sent and not tracked.refused:  # what is refused stays refused, and is logged by name
        raise WorkStoppedError(
            f"output={config.output}: MLflow stopped responding; run the same command to send the rest"
        )
    return {"steps": len(lines), "run_id": tracked.run_id}


def _send(
    tracked: Run,
    output: str,
    claim: Mapping[str, Any],
    report: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
) -> None:
    tags = claim["pins"].get("tags", {})
    if tags.get("data_digest"):
        dataset = data_entity(tags["data"], int(tags["data_version"]), tags["data_digest"])
        tracked.log_dataset(dataset, claim["pins"].get("command", "training"))
    tracked.fill_gaps(lines)
    figures = {key: value for key, value in report.items() if type(value) in (int, float)}
    tracked.log_missing_metrics({"final_loss": report["final_loss"]} if lines and report else figures)
    for picture in list_files(output, suffixes=PICTURES, recursive=False)["uri"].to_pylist():
        tracked.log_stored_artifact(picture)
    for line in lines:
        if "picture" in line.get("validation", {}):
            tracked.log_stored_artifact(
                join(output, "pictures", line["validation"]["picture"].rpartition("/")[2]), "pictures"
            )


def _tracking(given: TrackingConfig, own: Mapping[str, Any]) -> TrackingConfig:
    """The run's own tracking settings, with those given now over them."""
    uri = given.uri or own.get("uri")
    default = given.experiment == TrackingConfig.experiment
    experiment = own.get("experiment", given.experiment) if default else given.experiment
    return replace(given, uri=None if uri == "none" else uri, experiment=experiment)


def _claim(output: str) -> dict[str, Any]:
    try:
        claim: dict[str, Any] = json.loads(read_bytes(join(output, "run.json")))
    except StorageError as error:
        raise UserError(f"output={output}: {error}; give the output of a run") from error
    return claim


def _journal(output: str) -> str:
    if exists(join(output, "metrics.jsonl")):
        return read_bytes(join(output, "metrics.jsonl")).decode()
    steps = complete_steps(output)
    return read_journal(output, steps[-1]) if steps else ""


def _record(path: str, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    return dict(parse(read_bytes(path))) if exists(path) else {}


main = Command("sync", SyncConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
