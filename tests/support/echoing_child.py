"""A child of `IsolatedService` that does as it is asked, without any video."""

from __future__ import annotations

import dataclasses
import time

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
    """Take some time in small steps, with or without reports; answers with the path."""

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


held: list[bytes] = []


def count(path: str, request: Count, replies: Replies) -> int:
    for number in range(request.parts):
        replies.emit(number)
    return request.parts


def work(path: str, request: Work, replies: Replies) -> str:
    end = time.monotonic() + request.seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        if request.reports:
            replies.progress()
    return path


def fail(path: str, request: Fail, replies: Replies) -> None:
    raise ERRORS[request.error]


def grow(path: str, request: Grow, replies: Replies) -> None:
    held.append(b"x" * request.size)


def main(connection_file: int) -> None:
    """Serve the parent."""
    serve(connection_file, {Count: count, Work: work, Fail: fail, Grow: grow})
