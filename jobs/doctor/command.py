"""Check every host of the cluster before a run: versions, GPUs, network, storage, MLflow, decoder, disks, limits.

Usage: ``python -m jobs.doctor [output=URI] [json=true]``. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from jobs.core.cli import Command, print_tables, write
from jobs.core.events import is_json
from jobs.core.ray_cluster import connect
from jobs.core.redaction import without_secrets
from jobs.doctor.cluster import DRIVER, cluster_findings
from jobs.doctor.findings import Finding, as_json, as_table
from jobs.runs.mlflow_store import tracking_client_for
from jobs.runs.tracking import tracking_uri
from jobs.runs.tracking_config import TrackingConfig
from pipeline.storage.errors import first_line
from pipeline.storage.files import absolute

DESCRIPTION = (
    "Check every host of the cluster before a run, as a table or as JSON: each line ok or with its remedy; exit code 1 "
    "if anything is wrong."
)


@dataclass(frozen=True)
class DoctorConfig:
    """What is checked beside the hosts themselves."""

    output: str | None = None
    """Path or URI below which every host writes, reads and deletes a few MiB. Default: storage is not checked."""
    json: bool = False
    """Print JSON instead of a table."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def run(config: DoctorConfig) -> dict[str, Any]:
    """Check, print, and end the process with 1 if anything is wrong."""
    started = time.monotonic()
    connect()
    findings = [
        *cluster_findings(absolute(config.output) if config.output else None),
        *mlflow_findings(config.tracking),
    ]
    if config.json and not is_json():
        write(as_json(findings))
    else:
        print_tables(as_table(findings))
    wrong = sum(not finding.ok for finding in findings)
    if wrong or config.json:
        sys.exit(bool(wrong))
    return {"checks": len(findings), "wrong": wrong, "seconds": time.monotonic() - started}


def mlflow_findings(config: TrackingConfig) -> list[Finding]:
    """Whether MLflow answers the driver, which alone talks to it."""
    uri = tracking_uri(config, output=None)
    if uri is None:
        return []
    started, shown = time.monotonic(), without_secrets(uri)
    try:
        tracking_client_for(uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        remedy = "start the server, or correct tracking.uri (MLFLOW_TRACKING_URI) and its user and password"
        return [Finding(DRIVER, "MLflow", False, without_secrets(f"{shown}: {first_line(error)}"), remedy)]
    return [Finding(DRIVER, "MLflow", True, f"{shown} answers in {1000 * (time.monotonic() - started):.0f} ms")]


main = Command("doctor", DoctorConfig, run, description=DESCRIPTION, keep_report=False)
