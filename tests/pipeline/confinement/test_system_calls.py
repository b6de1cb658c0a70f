"""The filter of system calls: the numbers by the kernel's headers, what is permitted, and other machines."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.confinement import system_calls
from pipeline.confinement.system_calls import (
    ALLOW,
    ALWAYS,
    ANY_BIT,
    AT_EMPTY_PATH,
    AT_LEAST,
    BY_NAME,
    EQUAL,
    KILL,
    LOAD,
    MACHINES,
    RETURN,
    filter_program,
    refuse_system_calls,
)

HERE = Path(system_calls.__file__).parents[2]
X86, ARM = MACHINES["x86_64"], MACHINES["aarch64"]
FORBIDDEN = {  # x86-64, arm64
    "socket": (41, 198), "connect": (42, 203), "sendmsg": (46, 211), "execve": (59, 221), "kill": (62, 129),
    "ptrace": (101, 117), "mount": (165, 40), "io_uring_setup": (425, 425), "bpf": (321, 280), "unlinkat": (263, 35),
    "process_vm_writev": (311, 271), "pidfd_send_signal": (424, 424), "ftruncate": (77, 46), "clone3": (435, 435),
}  # fmt: skip


def verdict(program: list[tuple[int, int, int, int]], architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would make of a call: the program, interpreted."""
    data = {0: number, 4: architecture, **{16 + 8 * index: value for index, value in enumerate(arguments)}}
    position = loaded = 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        if code == LOAD:
            loaded = data.get(operand, 0)
        elif code == RETURN:
            return operand
        else:
            tests = {EQUAL: loaded == operand, AT_LEAST: loaded >= operand, ANY_BIT: bool(loaded & operand)}
            position += if_true if tests[code] else if_false


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize("opens_files", [False, True])
def test_what_is_permitted(machine: system_calls.Machine, opens_files: bool) -> None:
    program = filter_program(machine, 77, opens_files, starts_threads=True)
    column, architecture = machine.column, machine.audit_architecture

    def is_allowed(number: int, *arguments: int) -> bool:
        return verdict(program, architecture, number, *arguments) == ALLOW

    assert not [name for name, call in ALWAYS.items() if call[column] >= 0 and not is_allowed(call[column])]
    for name, call in BY_NAME.items():
        assert call[column] < 0 or is_allowed(call[column]) == opens_files, name
    assert not [name for name, call in FORBIDDEN.items() if is_allowed(call[column])]
    openat, clone, fcntl, tgkill = ((257, 56), (56, 220), (72, 25), (234, 131))
    assert is_allowed(openat[column], 0, 0, 0) == opens_files  # O_RDONLY
    for flags in (1, 2, 0o100, 0o1000, 0o2000):
        assert not is_allowed(openat[column], 0, 0, flags)
    assert is_allowed(clone[column], 0x3D0F00)  # a thread, as glibc makes it
    assert not is_allowed(clone[column], 0x1200011)  # fork
    assert is_allowed(tgkill[column], 77, 78, 6)
    assert not is_allowed(tgkill[column], 76, 76, 6)
    assert is_allowed(fcntl[column], 3, 1030)
    assert not is_allowed(fcntl[column], 3, 8)  # F_SETOWN
    assert is_allowed((262, 79)[column], 3, 0, 0, AT_EMPTY_PATH)
    assert is_allowed((262, 79)[column], 3, 0, 0, 0) == opens_files


def test_threads_only_where_they_are_needed() -> None:
    assert verdict(filter_program(X86, 1, False, starts_threads=False), X86.audit_architecture, 56, 0x3D0F00) != ALLOW


def test_calls_of_another_abi_end_the_process() -> None:
    program = filter_program(X86, 1, False, False)
    assert verdict(program, 0x40000003, 0) == KILL  # AUDIT_ARCH_I386
    assert verdict(program, X86.audit_architecture, 0x40000000 + 1) == KILL


def test_a_machine_without_a_list_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(system_calls, "NO_NEW_PRIVILEGES", 39)  # asks for the flag: this process keeps its rights
    assert refuse_system_calls() == "no list of system calls for riscv64"


def test_the_filter_holds_in_every_thread() -> None:
    """Also in threads that ran before it was installed."""
    source = """
import socket, threading
from pipeline.confinement.system_calls import refuse_system_calls
go, result = threading.Event(), []
def late():
    go.wait()
    try:
        socket.socket()
    except PermissionError:
        result.append("refused")
thread = threading.Thread(target=late)
thread.start()
why = refuse_system_calls()
go.set()
thread.join()
print(why, *result)
"""
    printed = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
        env={"PYTHONPATH": str(HERE)},
    ).stdout
    assert printed.split() == ["refused"]


@pytest.mark.parametrize(
    ("header", "pattern", "column"),
    [
        ("x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+) (\d+)", 0),
        ("asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+) (\d+)", 1),
    ],
)
def test_numbers_are_those_of_the_kernel(header: str, pattern: str, column: int) -> None:
    """By the headers of this machine, where it has them; the attacks of `test_child_process` need none."""
    path = Path("/usr/include") / header
    known = dict(re.findall(pattern, path.read_text())) if path.exists() else {}
    ours = {name: call[column] for name, call in {**ALWAYS, **BY_NAME, **FORBIDDEN}.items() if call[column] >= 0}
    differing = {name: (number, known[name]) for name, number in ours.items() if int(known.get(name, number)) != number}
    assert not differing
