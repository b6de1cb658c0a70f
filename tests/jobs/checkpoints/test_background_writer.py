"""Checkpoints written in the background: retried, given up in time, never by a writer that lost its token."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints import background_writer as writing
from jobs.checkpoints import store as module
from jobs.checkpoints.background_writer import CheckpointConfig, CheckpointWriter
from jobs.checkpoints.store import (
    Checkpoint,
    collect_checkpoints,
    complete_steps,
    discard_after,
    latest_checkpoint,
    newest_cursor,
    read_journal,
)
from jobs.runs.fencing import acquire_token
from pipeline.storage.files import StorageError


def make(step: int, metric: float | None = None) -> Checkpoint:
    weights = {"w": torch.full((3,), float(step))}
    optimizer = {"w.exp_avg": torch.ones(3), "step": torch.tensor(step)}
    return Checkpoint(step, step * 8, weights, optimizer, {"note": "x"}, metric)


def folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}"


def writer_for(output: Path, **settings: Any) -> CheckpointWriter:
    return CheckpointWriter(CheckpointConfig(**settings), acquire_token(str(output)))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LAST_PAUSE_SECONDS", 0.0)


def test_writer_keeps_the_newest_and_the_best_and_the_whole_journal(tmp_path: Path) -> None:
    writer = writer_for(tmp_path, keep=2)
    for step, metric in ((1, 0.5), (2, 0.1), (3, 0.3), (4, 0.2), (5, None)):
        writer.save(make(step, metric), json.dumps({"step": step}) + "\n")
    writer.finish()
    assert not writer.failure
    assert complete_steps(str(tmp_path)) == [2, 4, 5]
    assert [json.loads(line)["step"] for line in read_journal(str(tmp_path), 3).splitlines()] == [1, 2, 3]
    assert not list(folder(tmp_path, 1).iterdir())


def test_a_failed_write_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_for(tmp_path)
    real, broken = module.write_bytes, True

    def fail_sometimes(uri: str, content: bytes) -> None:
        if broken:
            raise StorageError(uri, os.strerror(errno.ENOSPC), "free some capacity")
        real(uri, content)

    monkeypatch.setattr(module, "write_bytes", fail_sometimes)
    writer.save(make(1), '{"step": 1}\n')
    while "not saved" not in caplog.text:
        writer.save(make(1), '{"step": 1}\n')
    broken = False
    writer.save(make(2), '{"step": 2}\n')
    writer.finish()
    assert not writer.failure
    assert complete_steps(str(tmp_path))[-1] == 2
    assert read_journal(str(tmp_path), 2) == '{"step": 1}\n{"step": 2}\n'


def test_tells_when_nothing_can_be_saved_for_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    def fail(uri: str, content: bytes) -> None:
        raise StorageError(uri, "connection refused", "check the endpoint")

    monkeypatch.setattr(CheckpointConfig, "max_unsaved_minutes", 0.05)
    writer = writer_for(tmp_path)
    monkeypatch.setattr(module, "write_bytes", fail)
    writer.save(make(1), "")
    writer.finish()  # retries until the time is over
    assert "max_unsaved_minutes=0.05" in writer.failure
    assert "connection refused" in writer.failure


@pytest.fixture
def storage_goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing blocks, without an error, until the event is set."""
    real, goes_on = module.write_bytes, threading.Event()

    def write(uri: str, content: bytes) -> None:
        goes_on.wait(60)
        real(uri, content)

    monkeypatch.setattr(module, "write_bytes", write)
    yield goes_on
    goes_on.set()


def test_nobody_waits_long_for_a_slow_write_and_the_newest_snapshot_comes_next(
    tmp_path: Path, storage_goes_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SECONDS_BEFORE_TRAINING_CONTINUES", 0.1)
    writer = writer_for(tmp_path, keep=5)
    for step in (1, 2, 3):
        writer.save(make(step), json.dumps({"step": step}) + "\n")  # would wait for ever
    storage_goes_on.set()
    while complete_steps(str(tmp_path)) != [1, 3]:
        writer.poll()
        time.sleep(0.01)
    writer.finish()
    assert not writer.failure
    assert [json.loads(line)["step"] for line in read_journal(str(tmp_path), 3).splitlines()] == [1, 2, 3]


def test_a_write_that_never_ends_counts_as_unsaved(
    tmp_path: Path, storage_goes_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointConfig, "max_unsaved_minutes", 0.05)
    writer = writer_for(tmp_path)
    writer.save(make(1), "")
    writer.poll()
    assert not writer.failure
    writer.finish()  # would wait for ever
    assert "max_unsaved_minutes=0.05" in writer.failure
    assert "a write does not finish" in writer.failure


def test_a_lost_lease_stops_the_writer_before_the_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later start comes while the files are being written."""
    writer = writer_for(tmp_path)
    real = module.write_bytes

    def interrupted(uri: str, content: bytes) -> None:
        real(uri, content)
        if uri.endswith("state.json"):
            acquire_token(str(tmp_path))

    monkeypatch.setattr(module, "write_bytes", interrupted)
    writer.save(make(1), "")
    writer.finish()
    assert "generation 1 stops and leaves the output to it" in writer.failure
    assert complete_steps(str(tmp_path)) == []
    writer.save(make(2), "")
    writer.finish()
    assert not folder(tmp_path, 2).exists()


def test_a_cut_off_writer_deletes_nothing_of_a_later_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later start comes, and writes, while the marker's request is under way."""
    writer = writer_for(tmp_path)
    real = module.write_unless

    def delayed(uri: str, content: bytes, stays: Callable[[bytes], bool]) -> None:
        acquire_token(str(tmp_path))
        write_under_way.write_bytes(b"half of it")
        real(uri, content, stays)

    write_under_way = folder(tmp_path, 5) / "generation-0002-model-0.safetensors"
    write_under_way.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "write_unless", delayed)
    writer.save(make(1), "")
    writer.finish()
    assert "generation 1 stops and leaves the output to it" in writer.failure
    assert write_under_way.exists()
    collect_checkpoints(str(tmp_path), generation=1, keep=1, keep_best=0)  # had it not noticed yet
    assert write_under_way.exists()
    collect_checkpoints(str(tmp_path), generation=2, keep=1, keep_best=0)
    assert not write_under_way.exists()


def test_storage_that_lets_nobody_delete_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(uri: str) -> None:
        raise StorageError(uri, "access denied", "give the right to delete")

    monkeypatch.setattr(module, "delete", forbidden)
    writer = writer_for(tmp_path)
    for step in (1, 2, 3, 4):
        writer.save(make(step), "")
    writer.finish()
    assert not writer.failure
    assert 4 in complete_steps(str(tmp_path))
    assert "superfluous checkpoints not deleted" in caplog.text
    assert "checkpoint not saved" not in caplog.text
    next(folder(tmp_path, 4).glob("*model*")).write_bytes(b"torn")
    discard_after(str(tmp_path), newest_cursor(str(tmp_path)).step)  # as a new start does
    again = writer_for(tmp_path)
    again.save(make(4), "")
    again.finish()
    assert not again.failure
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.step == 4


def test_a_checkpoint_that_outlasts_an_announced_preemption_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_for(tmp_path)
    writer.save(make(1), "")
    writer.finish()
    assert not caplog.text
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
    writer = writer_for(tmp_path)
    for step in (2, 3):
        writer.save(make(step), "")
        writer.finish()
    assert caplog.text.count("more than the 0 s that Ray leaves a host at SIGTERM") == 1
