"""Peak memory: of the process tree without counting shared pages twice, and the cgroup's mark where it is ours."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.demo import process_memory
from jobs.demo.process_memory import PeakMemory, cgroup_peak_bytes, process_tree_bytes, watch_memory

MIB = 2**20


def test_private_memory_counts_for_each_process_and_shared_memory_once(tmp_path: Path) -> None:
    """Two children that map the same 64 MiB and hold 16 MiB each: 96 MiB more, not 160."""
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(64 * MIB))
    code = (
        f"import mmap; file = open({str(shared)!r}, 'rb'); "
        "memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(memory[::4096]); "
        f"own = bytearray(b'x' * {16 * MIB}); print('ready', flush=True); input()"
    )
    before = process_tree_bytes()
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline()
        grown = process_tree_bytes() - before
        exact = sum(psutil.Process(child.pid).memory_full_info().uss for child in children) + 64 * MIB
    finally:
        for child in children:
            child.communicate(b"\n", timeout=10)
    # This process shares some pages already, so the largest shared part does not grow by all of it.
    assert 32 * MIB < grown < exact + 16 * MIB


def test_the_watcher_keeps_the_highest_sum() -> None:
    with watch_memory(0.02) as memory:
        # Mapped, because an array may come from freed memory that the process still holds.
        held = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(held, np.uint8)[:] = 1
        time.sleep(0.2)
        held.close()
        time.sleep(0.1)
        now = process_tree_bytes() / 2**30
    assert memory.processes_gib > now + 24 / 1024
    assert memory.figures()["peak memory of all processes, GiB"] == memory.processes_gib


def test_a_short_command_is_sampled_too() -> None:
    with watch_memory() as memory:
        pass
    assert memory.processes_gib > 0


def test_a_look_takes_no_lock_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`smaps` holds the memory-map lock of the process that it describes."""

    def locked(_: psutil.Process) -> None:
        raise AssertionError("reads smaps")

    monkeypatch.setattr(psutil.Process, "memory_full_info", locked)
    assert process_tree_bytes() > 0


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/\n", "memory.peak"),
        ("0::/user.slice/session\n", "user.slice/session/memory.peak"),
        ("9:name=systemd:/\n4:memory:/job/one\n0::/\n", "memory/job/one/memory.max_usage_in_bytes"),
        ("4:cpu,memory:/\n", "memory/memory.max_usage_in_bytes"),
    ],
)
def test_the_mark_of_the_own_cgroup(membership: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(membership)
    assert cgroup_peak_bytes(tmp_path, tmp_path / "cgroup") is None
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("12345\n")
    assert cgroup_peak_bytes(tmp_path, tmp_path / "cgroup") == 12345


def test_no_cgroups(tmp_path: Path) -> None:
    assert cgroup_peak_bytes(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("later", "shown"), [(3 * 2**30, 3.0), (2 * 2**30, None), (None, None)])
def test_the_mark_counts_only_where_it_rose(
    later: int | None, shown: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark from before says nothing about this command."""
    marks = iter([2 * 2**30, later])
    monkeypatch.setattr(process_memory, "cgroup_peak_bytes", lambda: next(marks))
    assert PeakMemory().figures().get("peak memory of the cgroup with its page cache, GiB") == shown
