"""A child of `IsolatedService` that does as it is asked, without any video."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable

from pipeline.decode.child_loop import Replies, serve
from pipeline.decode.config import DecodeError

ERRORS = {
    "refused": DecodeError("max_pixels", "too large"),
    "memory": MemoryError(),
    "library": ValueError("a library's\nwords"),
    "mistake": TypeError("a mistake of ours"),
}


@dataclasses.dataclass(frozen=True)
class Count:
    """Emit 0, 1, ..., then answer with how many."""

    parts: int


@dataclasses.dataclass(frozen=True)
class Work:
    """Take some time in small steps, with or without reports; answers with how long it was."""

    seconds: float
    reports: bool


@dataclasses.dataclass(frozen=True)
class Fail:
    """Raise one of `ERRORS`."""

    error: str


@dataclasses.dataclass(frozen=True)
class Grow:
    """Hold more memory from now on."""

    size: int


@dataclasses.dataclass(frozen=True)
class Environment:
    """Answer with the names of the environment's variables."""


@dataclasses.dataclass(frozen=True)
class Send:
    """Send these bytes, as a child would that a video has taken over."""

    content: bytes


@dataclasses.dataclass(frozen=True)
class SendPart:
    """Send the beginning of a message, and nothing more, or more now and then."""

    pause: float = 60.0


@dataclasses.dataclass(frozen=True)
class Burn:
    """Use CPU and report progress, without end."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """Do what a child that a video has taken over might do (`ATTACKS`); answers with the error that it met."""

    kind: str
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Read:
    """Answer with the first bytes of the video."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What the service of a test may take."""

    number: int


held: list[bytes] = []


def count(path: str, request: Count, replies: Replies) -> int:
    for number in range(request.parts):
        replies.emit(number)
    return request.parts


def work(path: str, request: Work, replies: Replies) -> float:
    end = time.monotonic() + request.seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        if request.reports:
            replies.progress()
    return request.seconds


def fail(path: str, request: Fail, replies: Replies) -> None:
    raise ERRORS[request.error]


def grow(path: str, request: Grow, replies: Replies) -> None:
    held.append(b"x" * request.size)


def environment(path: str, request: Environment, replies: Replies) -> str:
    return " ".join(os.environ)


def send(path: str, request: Send, replies: Replies) -> None:
    replies._parent.write(request.content)
    replies._parent.flush()
    time.sleep(60)


def send_part(path: str, request: SendPart, replies: Replies) -> None:
    os.write(replies._parent.fileno(), b"\0\0\1")
    while True:
        time.sleep(request.pause)
        os.write(replies._parent.fileno(), b" ")


def burn(path: str, request: Burn, replies: Replies) -> None:
    while True:
        replies.progress()


def read(path: str, request: Read, replies: Replies) -> bytes:
    return os.pread(int(path.rpartition("/")[2]), 100, 0)


def _write_what_is_open(attack: Attack, replies: Replies) -> None:
    for file in range(256):
        try:
            os.pwrite(file, b"x", 0)
        except OSError as error:
            kept = error
        else:
            return
    raise kept


def _shrink(attack: Attack, replies: Replies) -> None:
    memory = mmap.mmap(replies.memory[0], 0)
    memory[0] = 7  # what it is for
    os.ftruncate(replies.memory[0], 0)


def _execute(attack: Attack, replies: Replies) -> None:
    os.execv("/bin/true", ["true"])


def _ptrace(attack: Attack, replies: Replies) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, os.getppid(), 0, 0) < 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


ATTACKS: dict[str, Callable[[Attack, Replies], object]] = {
    "socket": lambda attack, replies: socket.socket(),
    "unix socket": lambda attack, replies: socket.socket(socket.AF_UNIX),
    "fork": lambda attack, replies: os.fork() or os._exit(0),
    "execute": _execute,
    "thread": lambda attack, replies: threading.Thread(target=time.time).start(),
    "read another file": lambda attack, replies: pathlib.Path(attack.path).read_text(),
    "write a file": lambda attack, replies: pathlib.Path(attack.path).write_text("written"),
    "write what is open": _write_what_is_open,
    "remove a file": lambda attack, replies: os.unlink(attack.path),
    "list a folder": lambda attack, replies: os.listdir("/"),
    "kill the parent": lambda attack, replies: os.kill(os.getppid(), signal.SIGKILL),
    "trace the parent": _ptrace,
    "shrink the memory": _shrink,
    "grow the memory": lambda attack, replies: os.ftruncate(replies.memory[0], 2**40),
    "more memory files": lambda attack, replies: os.memfd_create("more"),
}


def attack(path: str, request: Attack, replies: Replies) -> str:
    try:
        ATTACKS[request.kind](request, replies)
    except (OSError, RuntimeError) as error:
        return type(error).__name__
    return "done"


HANDLERS = {
    Count: count, Work: work, Fail: fail, Grow: grow, Environment: environment, Send: send, SendPart: send_part,
    Burn: burn, Attack: attack, Read: read,
}  # fmt: skip


def main(connection_file: int) -> None:
    """Serve the parent."""
    serve(connection_file, HANDLERS)
