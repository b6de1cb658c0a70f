"""The first command keeps an output; a dead one is followed; one that was cut off can decide nothing any more."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from jobs.core.errors import UserError
from jobs.runs import exclusive_lock as module
from jobs.runs.exclusive_lock import exclusive_lock, last_sealed
from jobs.runs.fencing import SupersededError, claim_generation, records


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)


def test_the_first_keeps_the_output_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 60)  # a beat may wait for the disk; the first one that comes ends it
    with exclusive_lock(str(tmp_path)) as first:
        with (
            pytest.raises(UserError, match=r"another job is working on it \(generation 1, process \d+ on"),
            exclusive_lock(str(tmp_path)),
        ):
            pytest.fail("held twice")
        first.seal({"version": 0})
        with pytest.raises(UserError, match="generation 2"), exclusive_lock(str(tmp_path)):
            pytest.fail("held twice")
    with exclusive_lock(str(tmp_path)) as second:
        assert second.generation == 3
        assert last_sealed(str(tmp_path)) == {"version": 0}


def test_a_killed_program_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 1e6)
    output, holder = str(tmp_path), subprocess.Popen(["sleep", "600"])
    identity = {"machine": module._machine(), "pid": holder.pid, "created": psutil.Process(holder.pid).create_time()}
    claim_generation(output, 1, {"holder": 1, "process": identity})
    (tmp_path / "generations" / "00000001.alive").write_text("7")
    assert not module._is_dead(identity)
    assert module._is_dead(identity | {"created": 0.0})  # another process has its number by now
    holder.kill()
    with exclusive_lock(output) as writer:  # also while nobody has waited for the dead one
        assert writer.generation == 2
    holder.wait()
    assert module._is_dead(identity)
    assert not module._is_dead(identity | {"machine": "another"})


def test_a_program_that_was_cut_off_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another machine nobody can tell whether it is dead: after some silence it is followed."""
    output = str(tmp_path)
    with exclusive_lock(output) as cut_off:
        cut_off._ended.set()  # its heartbeats no longer arrive
        cut_off._thread.join()
        monkeypatch.setattr(module, "_machine", lambda: "another machine")
        with exclusive_lock(output) as follower:
            cut_off._checked_at = 0.0
            with pytest.raises(SupersededError, match=r"a later start has taken over \(generation 2"):
                cut_off.check()
            with pytest.raises(SupersededError, match="leaves the output to it"):
                cut_off.seal({"version": "of the one cut off"})
            assert last_sealed(output) is None
            follower.check()
            follower.seal({"version": "of the follower"})
    assert last_sealed(output) == {"version": "of the follower"}
    assert [record["generation"] for record in records(output)] == [3, 2, 1]


def test_of_two_that_start_at_once_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_was_faster(output: str, generation: int, note: object) -> bool:
        assert claim_generation(output, generation, {"holder": generation})
        return claim_generation(output, generation)

    monkeypatch.setattr(module, "claim_generation", other_was_faster)
    with (
        pytest.raises(UserError, match=r"another job is working on it \(generation 1"),
        exclusive_lock(str(tmp_path)),
    ):
        pytest.fail("held twice")
