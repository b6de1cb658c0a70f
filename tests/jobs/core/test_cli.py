"""What all commands share, seen from a shell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["--help"], ["--print-config", "output=x"], ["--dry-run", "output=x"]])
def test_a_reader_that_closes_the_pipe_ends_the_command_silently(arguments: list[str]) -> None:
    """As `head` does once it has its lines."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs.sync", *arguments]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")
