"""Runs that MLflow missed are sent later, whole, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.core.errors import UserError, WorkStoppedError
from jobs.runs.mlflow_sender import Run
from jobs.runs.source_tree import COMMIT_TAG
from jobs.runs.tracking_config import TrackingConfig
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from tests.support.listener import listener
from tests.support.run_output import journal_lines, write_output
from tests.support.tracked_runs import NOBODY, recorded_run, steps

pytestmark = pytest.mark.ray


def test_sync_sends_a_whole_run_and_nothing_twice(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    lines = journal_lines(30)
    key = write_output(tmp_path / "run", store, lines)
    for _ in range(2):
        report: dict[str, Any] = dict(sync(SyncConfig(output=str(tmp_path / "run"))))
        assert report["steps"] == 30
        found = recorded_run(store, key)
        assert found.info.run_id == report["run_id"]
        assert steps(store, report["run_id"]) == list(range(1, 31))
        assert steps(store, report["run_id"], "final_loss") == [0]
    assert found.info.status == "FINISHED"
    assert (found.data.tags["command"], found.data.tags["data_digest"]) == ("pretrain", "0123456789abcdef")
    assert found.data.params["data"] == "/data/set"
    assert found.data.tags[COMMIT_TAG] == "0" * 40  # the run's own, not that of the checkout which sends
    assert found.inputs.dataset_inputs[0].dataset.name == "set version 3"


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_sync_leaves_how_an_unfinished_run_ended(status: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    key = write_output(tmp_path / "run", store, journal_lines(3))
    for written_at_the_end in ("report.json", "metrics.jsonl"):
        (tmp_path / "run" / written_at_the_end).unlink()
    assert Run(store, "hiera-video", key, {}).finish(status)
    sync(SyncConfig(output=str(tmp_path / "run")))
    assert recorded_run(store, key).info.status == status


def test_sync_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.sync.ANSWER_SECONDS", 0.5)
    with pytest.raises(UserError, match="give the output of a run"):
        sync(SyncConfig(output=str(tmp_path / "nothing")))
    write_output(tmp_path / "run", NOBODY, journal_lines(3))
    with pytest.raises(WorkStoppedError, match="no answer within"):
        sync(SyncConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(NOBODY)))
    monkeypatch.setattr("jobs.sync.tracking_uri", lambda *_: None)  # as for an output on S3
    with pytest.raises(UserError, match=r"tracking\.uri: is required here"):
        sync(SyncConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(NOBODY)))


def test_a_server_that_only_the_output_names_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write to an output could otherwise collect the passwords of those who sync it."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    monkeypatch.setattr("jobs.sync.ANSWER_SECONDS", 1.0)
    with listener() as stranger:
        write_output(tmp_path / "run", stranger.uri, journal_lines(3))
        with pytest.raises(UserError, match=rf"add tracking.uri={stranger.uri} to the command to confirm it"):
            sync(SyncConfig(output=str(tmp_path / "run")))
        assert not stranger.paths
        for named in ("argument", "environment"):
            if named == "environment":
                monkeypatch.setenv("MLFLOW_TRACKING_URI", stranger.uri)
            tracking = TrackingConfig(stranger.uri if named == "argument" else None)
            sync(SyncConfig(output=str(tmp_path / "run"), tracking=tracking))
            assert stranger.authorizations
            stranger.authorizations.clear()
