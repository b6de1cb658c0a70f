"""Hangs of real processes in a process group, at 2, 30 and 60 minutes (of a tenth of a second each). No Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.fencing import acquire_token
from jobs.supervision import watchdog as module
from jobs.supervision.coordinator import Activity, Heartbeat
from jobs.supervision.stack_dump import take_stacks_and_kill
from tests.jobs.supervision.test_watchdog import FakeRay, wait_until, watch_over
from tests.jobs.supervision.test_watchdog import ray as ray

pytestmark = pytest.mark.faults

MINUTE = 0.1  # seconds; the hang is noticed after so many, and all time-outs shrink alike
# Both ranks connect with Ray's 30 minutes, and have a group of DeepSpeed's with torch's default.
PROGRAM = """
import sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from jobs.supervision.process_group import collective_seconds, limit_collectives
from jobs.supervision.stack_dump import stacks_on_signal

rank, store, kind, minutes = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
scale = {minute} / 60

def hang_outside():
    time.sleep(600)

def hang_inside(group):
    dist.barrier(group)

def train_worker():
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1800 * scale))
    limit_collectives(scale * collective_seconds(minutes, 0))
    dist.all_reduce(torch.ones(1), group=group)
    print(stacks_on_signal(), flush=True)
    if rank == 0:
        dist.all_reduce(torch.ones(1), group=group)
    elif kind == "outside":
        hang_outside()
    else:
        hang_inside(dist.group.WORLD)

timeout = timedelta(seconds=1800 * scale)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=timeout)
train_worker()
""".replace("{minute}", str(MINUTE))


@pytest.fixture
def local_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real signal, without a task on the rank's host."""

    def take(heartbeats: Any) -> dict[int, str]:
        return {beat.rank: take_stacks_and_kill(beat.pid, beat.stacks_path) for beat in heartbeats}

    monkeypatch.setattr(module, "take_all_stacks", take)


@pytest.fixture
def ranks(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[subprocess.Popen[str]]]:
    kind, minutes = request.param
    arguments = [str(tmp_path / "store"), kind, str(minutes)]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


CASES = [(kind, minutes) for kind in ("outside", "inside") for minutes in (2, 30, 60)]


@pytest.mark.parametrize(("ranks", "case"), [(case, case) for case in CASES], indirect=["ranks"])
def test_a_hang_is_reported_with_rank_and_stack(
    ray: FakeRay,
    local_stacks: None,
    ranks: list[subprocess.Popen[str]],
    case: tuple[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, minutes = case
    paths = [process.stdout.readline().strip() for process in ranks if process.stdout]
    token = acquire_token(str(tmp_path / "out"))
    with watch_over(token, hang_minutes=minutes * MINUTE / 60, saving_minutes=0) as watchdog:
        watchdog.begin(token, 2, 0)
        for rank, (process, path) in enumerate(zip(ranks, paths, strict=True)):
            activity = Activity.FORWARD if rank else Activity.AGREEING
            ray.coordinator.beat(token.generation, Heartbeat(rank, "host", "node", process.pid, path, 4, 0, activity))
        wait_until(lambda: (tmp_path / "out" / "hangs").exists(), seconds=40)
    assert f"slow: rank 1 on host (process {ranks[1].pid}): forward in step 5; stacks:" in capsys.readouterr().err
    (written,) = (tmp_path / "out" / "hangs").iterdir()
    first, _, second = written.read_text().partition("rank 1 on host")
    assert "in all_reduce" in first
    assert f"in hang_{kind}" in second
