"""How a child of a sweep ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.core.events import emit
from jobs.sweep.children import Children, Outcome, passed_on
from jobs.sweep.plan import plan_children, read_arguments
from tests.support.events import events


def test_a_killed_child_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line is not the reason."""
    dies = "import os, signal; print('all is well', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(Children, "_start", lambda *_: subprocess.Popen([sys.executable, "-c", dies], text=True,
                                                                        stdout=subprocess.PIPE))  # fmt: skip
    child = plan_children(read_arguments(["prepare", "source=videos", "val_share=[0]", f"output={tmp_path}"]))[0]
    assert Children("prepare", {}).run(child) == Outcome("failed", "by SIGKILL")


def test_the_reason_of_a_failed_child_is_its_last_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event of its end has none."""
    fails = "from jobs.core.events import emit; emit('refused', 'data=/nowhere'); emit('ended', ''); exit(2)"
    monkeypatch.setenv("HIERA_LOG", "json")
    monkeypatch.setattr(Children, "_start", lambda *_: subprocess.Popen([sys.executable, "-c", fails], text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT))  # fmt: skip
    child = plan_children(read_arguments(["prepare", "source=videos", "val_share=[0]", f"output={tmp_path}"]))[0]
    assert Children("prepare", {}).run(child).last_line == "data=/nowhere"


def test_events_of_a_child_name_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    emit("step", "step 3", {"loss": 0.5}, step=3)
    line = capsys.readouterr().err.rstrip()
    assert passed_on("seed=0", "plain text") == "plain text"
    assert capsys.readouterr().err == "seed=0 plain text\n"
    monkeypatch.setenv("HIERA_LOG", "json")
    assert passed_on("seed=0", line) == "step 3"
    assert passed_on("seed=0", "from a library") == "from a library"
    step, other = events(capsys.readouterr().err)
    assert (step["event"], step["step"], step["fields"]) == ("step", 3, {"loss": 0.5, "child": "seed=0"})
    assert (other["event"], other["fields"]) == ("output", {"child": "seed=0"})
