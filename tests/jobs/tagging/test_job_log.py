"""The first job keeps an output; a dead one is followed; attempts that did not end are counted over all jobs."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.exceptions import RayError

from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.tagging import job_log as module
from jobs.tagging.job_log import NONE, Begin, JobLog, State, read_state, working_on
from pipeline.storage.delta import Change, Table, create_table, open_table


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)


def _table(output: Path) -> Table:
    table = open_table(str(output / "jobs"))
    assert table is not None
    return table


def _dead(output: Path, state: State) -> None:
    """What a job leaves that was killed."""
    table = open_table(str(output / "jobs")) or create_table(str(output / "jobs"), module.NO_ROWS)
    table.commit(Change(), {"state": state.to_json()})


def _cut_off(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commits do not arrive any more, and of another machine nobody knows whether it is dead."""
    log._ended.set()
    log._thread.join()
    monkeypatch.setattr(module, "_machine", lambda: "another machine")


def test_the_first_keeps_the_output_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 60)  # a beat may wait for the disk; the first one that comes ends it
    with working_on(str(tmp_path)) as first:
        with (
            pytest.raises(UserError, match=r"another job is working on it \(process \d+ on"),
            working_on(str(tmp_path)),
        ):
            pytest.fail("held twice")
        first.check()
    with working_on(str(tmp_path)) as second:
        assert not second.follows_a_dead_one


def test_a_killed_job_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 1e6)
    holder = subprocess.Popen(["sleep", "600"])
    job = {"host": "h", "pid": holder.pid, "created": psutil.Process(holder.pid).create_time(), "started": "today"}
    job["machine"] = module._machine()
    _dead(tmp_path, State(job))
    assert not module._is_dead(job)
    assert module._is_dead(job | {"created": 0.0})  # another process has its number by now
    holder.kill()
    with working_on(str(tmp_path)) as log:  # also while nobody has waited for the dead one
        assert log.follows_a_dead_one
    holder.wait()
    assert module._is_dead(job)
    assert not module._is_dead(job | {"machine": "another"})


def test_a_job_that_was_cut_off_learns_of_its_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_on(str(tmp_path)) as cut_off:
        _cut_off(cut_off, monkeypatch)
        with working_on(str(tmp_path)) as follower:
            assert follower.follows_a_dead_one
            with pytest.raises(WorkStoppedError, match=r"another job has taken over \(process \d+"):
                cut_off.begin([Begin("0", "run", 1)])
            with pytest.raises(WorkStoppedError):
                cut_off.check()
            follower.begin([Begin("0", "run", 1)])


def test_of_two_that_start_at_once_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Table.commit

    def other_was_faster(table: Table, change: Change, metadata: Any, transaction: Any = None) -> None:
        monkeypatch.setattr(Table, "commit", original)
        other = open_table(table.uri)
        assert other is not None
        other.commit(change, metadata)
        original(table, change, metadata, transaction)

    monkeypatch.setattr(Table, "commit", other_was_faster)
    with pytest.raises(UserError, match=r"another job is working on it \(process"), working_on(str(tmp_path)):
        pytest.fail("held twice")


def test_a_video_at_work_is_in_the_log_before_it_is_read(tmp_path: Path) -> None:
    with working_on(str(tmp_path)) as log:
        assert log.begin([Begin("0", "run", 7), Begin("1", "run", 8)]) == [0, 0]
        state = read_state(_table(tmp_path))
        assert state is not None
        assert {video for _, video in state.at_work.values()} == {7, 8}
        log.begin([Begin("0", "run", NONE)])
        state = read_state(_table(tmp_path))
        assert state is not None
        assert state.at_work == {"1": ("run", 8)}


def test_attempts_that_killed_the_job_count_in_the_next_ones(tmp_path: Path) -> None:
    """7 kills two jobs; 8 was at work once; 9 had ended."""
    dead = State({"host": "h", "pid": 0, "machine": module._machine(), "created": 0.0, "started": "today"})
    dead.begin(Begin("0", "a", 9))
    dead.begin(Begin("0", "a", 7))
    dead.begin(Begin("1", "a", 8))
    _dead(tmp_path, dead)
    with working_on(str(tmp_path)) as log:
        assert log.state.attempts == {7: 1, 8: 1}
        assert log.begin([Begin("0", "b", 7), Begin("1", "b", 8), Begin("1", "b", 9)]) == [1, 1, 0]
        assert log.state.attempts == {7: 1}  # 8 has ended
        log.state.job = dead.job
        killed = State.from_json(log.state.to_json(), "log")
    _dead(tmp_path, killed)
    with working_on(str(tmp_path)) as log:
        assert log.begin([Begin("0", "c", 7)]) == [2]
        assert log.state.at_work == {}  # nobody tries it again
        assert log.state.lost == 4


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(None, 0), (StopRequestedError("stopped"), 0), (WorkStoppedError("too many failures"), 0), (RayError("died"), 1)],
)
def test_a_job_that_ends_itself_costs_no_video_an_attempt(
    error: Exception | None, attempts: int, tmp_path: Path
) -> None:
    """Two jobs that are stopped while they read the same video would otherwise mark it as crashed for good."""
    for before in (0, attempts):
        with suppress(StopRequestedError, WorkStoppedError, RayError), working_on(str(tmp_path)) as log:
            assert log.begin([Begin("0", "run", 7, "seven.mp4"), Begin("1", "run", 8, "eight.mp4")]) == [before, 0]
            log.begin([Begin("1", "run", NONE)])
            if error:
                raise error
    with working_on(str(tmp_path)) as log:
        assert log.state.attempts == ({7: 2 * attempts} if attempts else {})
        assert log.state.uris == ({7: "seven.mp4"} if attempts else {})


def test_a_task_that_is_run_again_counts_the_video_that_killed_its_worker() -> None:
    state = State({})
    assert state.begin(Begin("0", "first", 1)) == 0
    assert state.begin(Begin("0", "first", 2)) == 0
    assert state.begin(Begin("0", "second", 1)) == 0  # the worker died at 2
    assert state.begin(Begin("0", "second", 2)) == 1
    assert state.begin(Begin("0", "third", 1)) == 0
    assert state.begin(Begin("0", "third", 2)) == 2
    assert state.begin(Begin("0", "third", NONE)) == 0
    assert (state.at_work, state.attempts, state.lost) == ({}, {2: 2}, 2)


def test_the_log_knows_by_name_what_an_earlier_job_may_have_died_of() -> None:
    dead = State({"host": "a", "pid": 1, "machine": "b", "created": 1.5, "started": "today"})
    for video, uri in ((1, "read.mp4"), (2, "at-work.mp4")):
        dead.begin(Begin("0", "first", video, uri))
    state = State.from_json(dead.followed_by(dead.job).to_json(), "log")
    assert state.uris == {2: "at-work.mp4"}
    assert state.begin(Begin("0", "second", 2, "at-work.mp4")) == 1
    state.begin(Begin("0", "second", NONE))
    assert state.uris == {}


def test_a_video_that_the_decoder_gave_up_has_no_attempt_left() -> None:
    state = State({"host": "a", "pid": 1, "machine": "b", "created": 1.5, "started": "today"})
    state.begin(Begin("0", "first", 1))
    assert state.begin(Begin("0", "first", 1, give_up=True)) == 2
    state.begin(Begin("0", "first", 2))
    assert State.from_json(state.to_json(), "jobs") == state
    assert state.begin(Begin("0", "second", 1)) == 2
