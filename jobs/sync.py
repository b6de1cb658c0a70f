"""Send MLflow the steps and files of a run that it lacks, from the run's `output` alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.checkpoints.recorded_run import RecordedRun, read_run
from jobs.core.cli import Command, replace
from jobs.core.config import TRACKING_VARIABLE, unconfirmed
from jobs.core.errors import UserError, WorkStoppedError
from jobs.core.uri_credentials import is_server, same_server
from jobs.runs.mlflow_sender import Run
from jobs.runs.tracking import URI_REQUIRED, data_entity, start_run, tracking_uri
from jobs.runs.tracking_config import TrackingConfig
from pipeline.storage.files import join, list_files

DESCRIPTION = (
    "Send MLflow the steps and files of a run that it lacks, because the server was down; reads only the run's output. "
    "The default is the run's own database; a server must be named by tracking.uri or MLFLOW_TRACKING_URI."
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
    recorded = read_run(config.output)
    tracking = _tracking(config.tracking, recorded.config.get("tracking", {}))
    # The tags of the run's first start name its revision (`claim_output`); this checkout's is another.
    tracked = start_run(tracking, command=recorded.command, run_key=recorded.run_key, output=config.output,
                        params=recorded.config or recorded.settings, tags=recorded.tags, resumes=False,
                        source={})  # fmt: skip
    if tracking_uri(tracking, config.output) is None:
        raise UserError(URI_REQUIRED)
    if tracked.wait_for_id(ANSWER_SECONDS) is None:
        tracked.leave()
        raise WorkStoppedError(
            f"tracking.uri={tracking_uri(tracking, config.output)}: no answer within {ANSWER_SECONDS:.0f} seconds; "
            "start the server, or give another tracking.uri, and run the same command again"
        )
    _send(tracked, config.output, recorded)
    sent = tracked.finish(wait_seconds=SEND_SECONDS) if recorded.ended else tracked.drain(SEND_SECONDS)
    if not sent and not tracked.refused:  # what is refused stays refused, and is logged by name
        raise WorkStoppedError(
            f"output={config.output}: MLflow stopped responding; run the same command to send the rest"
        )
    return {"steps": len(recorded.lines), "run_id": tracked.run_id}


def _send(tracked: Run, output: str, recorded: RecordedRun) -> None:
    tags, lines, report = recorded.tags, recorded.lines, recorded.report
    if tags.get("data_digest"):
        dataset = data_entity(tags["data"], int(tags["data_version"]), tags["data_digest"])
        tracked.log_dataset(dataset, recorded.pins.get("command", "training"))
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
    """The run's own tracking settings, with those given now over them.

    Raises:
        UserError: a server that only the output names: anyone with write access would get the user's password.
    """
    uri = given.uri or own.get("uri")
    if given.uri is None and uri and is_server(uri) and not same_server(uri, os.environ.get(TRACKING_VARIABLE)):
        raise UserError(unconfirmed(uri, "the output"))
    default = given.experiment == TrackingConfig.experiment
    experiment = own.get("experiment", given.experiment) if default else given.experiment
    return replace(given, uri=None if uri == "none" else uri, experiment=experiment)


main = Command("sync", SyncConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
