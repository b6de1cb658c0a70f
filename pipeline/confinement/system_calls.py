"""A process takes most system calls from itself, for good: Linux's seccomp filter.

Decoders run code of others on bytes of strangers. What is left to such a process is memory, time, reading from files
that it was given and writing to its parent: no file is opened by name, no socket and no process is made, no other
process is touched. A call that is not on the list fails with EPERM, as if the user had no right to it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Machine(NamedTuple):
    """What the filter knows of a processor's Linux."""

    audit_architecture: int
    """`AUDIT_ARCH_*` of linux/audit.h: calls by another ABI (32 bits) end the process."""
    column: int
    """Of this machine in the tables below."""
    seccomp: int
    """Number of seccomp(2)."""


MACHINES = {"x86_64": Machine(0xC000003E, 0, 317), "aarch64": Machine(0xC00000B7, 1, 277)}
# Numbers on x86-64 (asm/unistd_64.h) and on arm64 (asm-generic/unistd.h); -1: no such call.
ALWAYS = {
    # Files that are open: read, never opened, cut, or sent elsewhere.
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "lseek": (8, 62), "fstat": (5, 80), "close": (3, 57),
    "dup": (32, 23), "recvfrom": (45, 207), "recvmsg": (47, 212), "poll": (7, -1), "ppoll": (271, 73),
    # To the parent; of files, RLIMIT_FSIZE permits none.
    "write": (1, 64), "writev": (20, 66),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "setitimer": (38, 103), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "times": (100, 153), "getrusage": (98, 165), "getpid": (39, 172), "gettid": (186, 178),
    "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "set_robust_list": (273, 99), "rseq": (334, 293), "getrandom": (318, 278), "sysinfo": (99, 179),
}  # fmt: skip
BY_NAME = {
    "stat": (4, -1), "lstat": (6, -1), "statx": (332, 291), "access": (21, -1),
    "faccessat": (269, 48), "readlink": (89, -1), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
}  # fmt: skip
"""Looks at files by name; with them comes opening for reading."""
OPEN, OPENAT, FSTATAT, FCNTL, TGKILL = (2, -1), (257, 56), (262, 79), (72, 25), (234, 131)
CLONE, CLONE3 = (56, 220), (435, 435)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: none that makes the kernel send signals or seals memory.
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
CLONE_THREAD = 0x10000
AT_EMPTY_PATH = 0x1000  # how glibc looks at a descriptor; it leaves size and times of files visible by name
NOT_FOR_READING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# linux/filter.h and linux/seccomp.h
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # the 32-bit pointers of x86-64 have numbers of their own
SET_MODE_FILTER, ALL_THREADS, NO_NEW_PRIVILEGES = 1, 1, 38

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def refuse_system_calls(opens_files: bool = False, starts_threads: bool = False) -> str:
    """Take from this process, and from all of its threads, every system call that decoding does not need.

    Args:
        opens_files: whether files may be opened by name, for reading.
        starts_threads: whether threads may be started; processes never.

    Returns:
        '' or why the kernel refused: then the process is not confined.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    machine = MACHINES.get(platform.machine())
    if machine is None:
        return f"no list of system calls for {platform.machine()}"
    code = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in filter_program(machine, os.getpid(), opens_files, starts_threads)
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.syscall(machine.seccomp, SET_MODE_FILTER, ALL_THREADS, ctypes.byref(program)) == 0:
        return ""
    return f"seccomp: {os.strerror(ctypes.get_errno())}"


def filter_program(machine: Machine, process: int, opens_files: bool, starts_threads: bool) -> list[Instruction]:
    """The filter as BPF instructions: code, jump if true, jump if false, operand."""

    def numbers(calls: Sequence[tuple[int, int]]) -> Iterator[int]:
        return (call[machine.column] for call in calls if call[machine.column] >= 0)

    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, machine.audit_architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, KILL),
    ]
    allowed = [*ALWAYS.values(), *(BY_NAME.values() if opens_files else ())]
    for number in numbers(allowed):
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for number in numbers([CLONE3]):  # its flags lie in memory, where no filter looks; glibc uses clone instead
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    for number in numbers([CLONE] if starts_threads else []):
        program += _if_called(number, 0, (ANY_BIT, 0, 1, CLONE_THREAD))
    for number in numbers([TGKILL]):  # abort(3)
        program += _if_called(number, 0, (EQUAL, 0, 1, process))
    for command in FCNTL_COMMANDS:
        program += _if_called(FCNTL[machine.column], 1, (EQUAL, 0, 1, command))
    for number in numbers([FSTATAT]):
        program += _if_called(number, 3, (AT_LEAST, 0, 1, 0 if opens_files else AT_EMPTY_PATH))
    for call, flags in ((OPEN, 1), (OPENAT, 2)) if opens_files else ():
        for number in numbers([call]):
            program += _if_called(number, flags, (ANY_BIT, 1, 0, NOT_FOR_READING))
    return [*program, (RETURN, 0, 0, FAIL | errno.EPERM)]


def _if_called(number: int, argument: int, condition: Instruction) -> list[Instruction]:
    """Allow a call where one of its arguments (its lower half, as all of these are ints) meets a condition."""
    return [
        (EQUAL, 0, 4, number),
        (LOAD, 0, 0, ARGUMENTS + 8 * argument),
        condition,
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, NUMBER),
    ]
