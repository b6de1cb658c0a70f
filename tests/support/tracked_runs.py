"""Runs in an MLflow store, started and read back."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from jobs.runs.mlflow_sender import Run

NOBODY = "http://someone:a-password@127.0.0.1:9"


def started(store: str, key: str) -> Run:
    """A run of the experiment `tests`."""
    return Run(store, "tests", key, {"command": "pretrain"})


def recorded_run(store: str, key: str) -> MlflowRun:
    """What the store has of a run."""
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("tests") or client.get_experiment_by_name("hiera-video")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.run_key = '{key}'")
    return run


def steps(store: str, run_id: str | None, metric: str = "loss") -> list[int]:
    """The steps that the store has of a metric."""
    assert run_id is not None
    return sorted(entry.step for entry in MlflowClient(tracking_uri=store).get_metric_history(run_id, metric))
