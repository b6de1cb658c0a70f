"""A real MLflow server that is down at the start, in the middle, at the end, or hangs: training does not notice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.runs.mlflow_sender import Run
from jobs.runs.tracking_config import TrackingConfig
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from tests.support.mlflow_server import MlflowServer
from tests.support.run_output import journal_lines, write_output

pytestmark = pytest.mark.timeout(300)

STEPS, STEP_SECONDS = 200, 0.02


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    yield server
    server.signal(signal.SIGKILL)


def history(server: MlflowServer, run_id: str) -> list[tuple[int, float]]:
    entries = MlflowClient(tracking_uri=server.uri).get_metric_history(run_id, "loss")
    return sorted((entry.step, entry.value) for entry in entries)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("comes later", marks=[pytest.mark.ray, pytest.mark.slow]),
        *(pytest.param(moment, marks=pytest.mark.faults) for moment in ("start", "middle", "end", "hangs")),
    ],
)
def test_the_step_is_not_slower_and_the_history_is_whole(moment: str, server: MlflowServer, tmp_path: Path) -> None:
    lines = journal_lines(STEPS)
    key = write_output(tmp_path / "run", server.uri, lines)
    if moment not in ("start", "comes later"):
        server.start()
    run = Run(server.uri, "hiera-video", key, {"command": "pretrain"})
    spent = 0.0
    for line in lines:
        time.sleep(STEP_SECONDS)
        if line["step"] == STEPS // 2:
            if moment == "comes later":
                server.start()
            elif moment in ("middle", "hangs"):
                server.signal(signal.SIGSTOP if moment == "hangs" else signal.SIGKILL)
        began = time.perf_counter()
        run.log_steps([line])
        spent += time.perf_counter() - began
    if moment == "end":
        server.signal(signal.SIGKILL)
    began = time.perf_counter()
    whole = run.finish(wait_seconds=10)
    assert time.perf_counter() - began < 13
    assert whole is (moment == "comes later")
    assert spent < 0.01 * STEPS * STEP_SECONDS

    server.signal(signal.SIGKILL)
    server.start()
    report = sync(SyncConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(server.uri)))
    assert history(server, str(report["run_id"])) == [(line["step"], line["loss"]) for line in lines]
    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("hiera-video")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert client.get_run(str(report["run_id"])).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(str(report["run_id"]))] == ["curves.png"]
