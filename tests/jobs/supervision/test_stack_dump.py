"""Stacks of hanging processes, and which of them the others wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.supervision.coordinator import Activity, Heartbeat
from jobs.supervision.stack_dump import stack_of, take_stacks_and_kill, waits_for_others
from jobs.supervision.watchdog import slow_ranks

# A regular expression that takes for ever holds the interpreter lock all the time.
HANGS = {
    "asleep": "time.sleep(600)",
    "holding the lock": "re.match('(a*)*b', 'a' * 40)",
}
PROGRAM = """
import re, time
from jobs.supervision.stack_dump import stacks_on_signal
def train_worker():
    print(stacks_on_signal(), flush=True)
    {hang}
train_worker()
"""


@pytest.mark.parametrize("kind", HANGS)
def test_stacks_are_written_whatever_the_process_does(kind: str) -> None:
    program = [sys.executable, "-c", PROGRAM.format(hang=HANGS[kind])]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        time.sleep(0.2)
        stacks = take_stacks_and_kill(process.pid, path)
        assert process.wait(10) == -signal.SIGKILL
    assert 'File "<string>"' in stack_of("train_worker", stacks)
    assert not Path(path).exists()


def test_a_stopped_process_gives_none_and_is_killed() -> None:
    program = [sys.executable, "-c", PROGRAM.format(hang=HANGS["asleep"])]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGSTOP)
        assert take_stacks_and_kill(process.pid, path) == ""
        assert process.wait(10) == -signal.SIGKILL


WAITING = """Thread 0x1 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 3111 in all_reduce
  File "/x/jobs/training/loop.py", line 140 in train_worker
"""
WORKING = """Thread 0x2 (most recent call first):
  File "/x/threading.py", line 1 in wait

Thread 0x1 (most recent call first):
  File "/x/jobs/pretrain.py", line 90 in forward
  File "/x/jobs/training/loop.py", line 140 in train_worker
"""


def sign(rank: int, activity: Activity) -> Heartbeat:
    return Heartbeat(rank, "host", "node", 1, "", step=4, micro_batch=0, activity=activity)


def test_the_slow_rank_is_the_one_outside_the_collective() -> None:
    assert waits_for_others(stack_of("train_worker", WAITING))
    assert not waits_for_others(stack_of("train_worker", WORKING))
    alike = {rank: sign(rank, Activity.BACKWARD) for rank in range(3)}
    assert slow_ranks(alike, {0: WAITING, 1: WORKING, 2: WAITING}) == [1]
    assert slow_ranks(alike, {0: WAITING, 1: WAITING, 2: ""}) == [2]
    behind = {0: sign(0, Activity.BACKWARD), 1: sign(1, Activity.FORWARD)}
    assert slow_ranks(behind, {0: WORKING, 1: WORKING}) == [1]
    assert slow_ranks(alike, dict.fromkeys(range(3), WAITING)) == [0, 1, 2]
