"""A run says when it starts that its checkpoints are too slow for an announced pre-emption."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.checkpoints import background_writer, grace_time
from jobs.checkpoints.background_writer import CheckpointConfig, CheckpointWriter
from jobs.runs.fencing import acquire_token
from pipeline.storage.files import StorageError

MIB = 2**20
BYTES_A_SECOND = 100 * MIB


@pytest.fixture
def slow_storage(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Storage that takes 100 MiB/s by a clock of its own; the names of what lies there."""
    written: list[str] = []
    clock = 0.0

    def write(uri: str, content: bytes) -> None:
        nonlocal clock
        clock += len(content) / BYTES_A_SECOND
        written.append(uri)

    monkeypatch.setattr(grace_time, "write_bytes", write)
    monkeypatch.setattr(grace_time, "delete", written.remove)
    monkeypatch.setattr(grace_time, "time", SimpleNamespace(monotonic=lambda: clock))
    return written


def writer_for(output: Path) -> CheckpointWriter:
    return CheckpointWriter(CheckpointConfig(), acquire_token(str(output)))


def trial(writer: CheckpointWriter, size: int) -> None:
    writer.expect(size)
    while writer._trial is not None:
        writer.poll()
        time.sleep(0.01)


@pytest.mark.parametrize(("mib", "fits"), [(2900, True), (3100, False)])
def test_it_is_known_before_the_first_checkpoint(
    mib: int, fits: bool, slow_storage: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At 100 MiB/s 30 seconds are enough for 3,000 MiB, and a trial of 64 shows it."""
    trial(writer_for(tmp_path), mib * MIB)
    assert ("will take about 31 s to write (3.03 GiB at 105 MB/s), more than the 30 s" in caplog.text) is not fits
    assert not slow_storage


def test_the_time_is_what_ray_was_told(
    slow_storage: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "120")
    trial(writer_for(tmp_path), 11_000 * MIB)
    assert not caplog.text
    trial(writer_for(tmp_path), 13_000 * MIB)
    assert "more than the 120 s that Ray leaves a host at SIGTERM" in caplog.text


def test_the_trial_is_written_as_checkpoints_are_and_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On this machine's own disk."""
    trial(writer_for(tmp_path), 20 * MIB)
    assert not [path for path in tmp_path.rglob("*") if "trial" in path.name]
    assert not caplog.text


def test_the_next_generation_deletes_the_file_of_a_worker_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(grace_time, "delete", lambda _: None)
        trial(writer_for(tmp_path), 20 * MIB)
    assert [path for path in tmp_path.rglob("*") if "trial" in path.name]
    trial(writer_for(tmp_path), 20 * MIB)
    assert not [path for path in tmp_path.rglob("*") if "trial" in path.name]


def test_small_checkpoints_need_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grace_time, "write_bytes", lambda *_: pytest.fail("written"))
    trial(writer_for(tmp_path), 15 * MIB)


def test_storage_that_refuses_the_trial_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(uri: str, content: bytes) -> None:
        raise StorageError(uri, "connection refused", "check the endpoint")

    writer = writer_for(tmp_path)
    monkeypatch.setattr(grace_time, "write_bytes", refuse)
    trial(writer, 20 * MIB)
    assert "fits into the grace time is not known yet" in caplog.text
    assert not writer.failure


def test_a_mistake_of_the_trial_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_writer.GraceTime, "expect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial(writer_for(tmp_path), 20 * MIB)
