"""The Python stacks of a process that may hang, written when it gets a signal.

`faulthandler` writes from the handler in C, so that not even a held interpreter lock hides them. A process that writes
no stacks is stopped, or its host is lost.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import tempfile
import time
from pathlib import Path

STACKS_SIGNAL = signal.SIGUSR1
SECONDS_FOR_STACKS = 5.0
COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")


def stacks_on_signal() -> str:
    """Let this process write the stacks of its threads at every `STACKS_SIGNAL`; returns the file's path."""
    # Open for the life of the process: the handler writes to its descriptor.
    handle, path = tempfile.mkstemp(prefix=f"stacks-{os.getpid()}-", suffix=".txt")
    faulthandler.register(STACKS_SIGNAL, file=handle, all_threads=True)
    return path


def take_stacks_and_kill(pid: int, path: str) -> str:
    """Stacks of a process on this host, empty if it writes none within some seconds; then SIGKILL."""
    stacks = Path(path)
    try:
        os.kill(pid, STACKS_SIGNAL)
        _wait_until_written(stacks)
        text = stacks.read_text(errors="replace")
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        text = stacks.read_text(errors="replace") if stacks.exists() else ""
    stacks.unlink(missing_ok=True)
    return text


def _wait_until_written(stacks: Path) -> None:
    gives_up_at, size = time.monotonic() + SECONDS_FOR_STACKS, -1
    while time.monotonic() < gives_up_at:
        grown = stacks.stat().st_size
        if grown and grown == size:
            return
        size = grown
        time.sleep(0.2)


def stack_of(function: str, stacks: str) -> str:
    """The stack of the thread that runs ``function``, innermost frame first; empty when none does."""
    threads = re.split(r"\n\s*\n", stacks)
    return next((thread for thread in threads if re.search(rf" in {function}$", thread, re.MULTILINE)), "")


def waits_for_others(stack: str) -> bool:
    """Whether a thread is inside a collective operation, so that it waits for the other ranks."""
    return any(collective in line for line in stack.splitlines()[:12] for collective in COLLECTIVES)
