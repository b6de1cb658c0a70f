"""The command: MLflow, and exit codes with a real local Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.doctor.command import mlflow_findings
from jobs.runs.tracking_config import TrackingConfig


def test_a_dead_mlflow_is_named_without_its_password() -> None:
    (finding,) = mlflow_findings(TrackingConfig("http://user:secret1@127.0.0.1:9"))
    assert not finding.ok
    assert "secret1" not in finding.detail
    assert "start the server" in finding.remedy


def test_a_sound_mlflow_and_none(tmp_path: Path) -> None:
    (finding,) = mlflow_findings(TrackingConfig(f"sqlite:///{tmp_path}/mlflow.db"))
    assert finding.ok, finding
    assert mlflow_findings(TrackingConfig("none")) == []


@pytest.mark.ray
def test_anything_wrong_is_exit_code_1_and_json_says_what(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "jobs.doctor",
        f"output={tmp_path}",
        "json=true",
        "tracking.uri=http://127.0.0.1:9",
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 1, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["ok"] is False
    assert "MLflow" in {finding["check"] for finding in answer["findings"] if not finding["ok"]}
