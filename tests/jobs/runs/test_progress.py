"""Progress in pipes, on terminals and as events."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.events import events

SCRIPT = """
from jobs.runs import progress
from jobs.core.cli import echo
progress.LOG_SECONDS = -1
if len(list(progress.tracked("abc", "reading", "letters", 3))) == 3:
    echo("done", warning=True)
"""
COLOURED = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|38|48)")


def on_a_terminal(script: Path, environment: dict[str, str]) -> str:
    """What a script prints on a terminal."""
    reading, writing = pty.openpty()
    process = subprocess.Popen([sys.executable, str(script)], stderr=writing, stdout=writing, env=environment)
    os.close(writing)
    printed = b""
    try:
        while part := os.read(reading, 4096):
            printed += part
    except OSError:  # the terminal's end, on Linux
        pass
    os.close(reading)
    assert process.wait(60) == 0
    return printed.decode()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "HIERA_LOG")}
    return {**kept, "PYTHONPATH": os.getcwd(), "TERM": "xterm-256color", **more}


def test_a_pipe_gets_lines_and_no_bar(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [*(f"reading: {n} of 3 letters" for n in (1, 2, 3)), "warning: done"]


def test_events_have_the_numbers(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(HIERA_LOG="json"), capture_output=True, text=True, check=True
    )
    *progress, end = events(done.stderr)
    assert [line["fields"]["done"] for line in progress] == [1, 2, 3]
    assert (end["event"], end["level"]) == ("log", "warning")


def test_a_terminal_gets_a_bar_in_colours_unless_told_otherwise(script: Path) -> None:
    coloured, plain = (on_a_terminal(script, environment(**more)) for more in ({}, {"NO_COLOR": "1"}))
    assert "━" in coloured
    assert COLOURED.search(coloured)
    assert "━" in plain
    assert not COLOURED.search(plain)


def test_events_on_a_terminal_are_no_bar(script: Path) -> None:
    printed = on_a_terminal(script, environment(HIERA_LOG="json"))
    assert len(events(printed.replace("\r\n", "\n"))) == 4
