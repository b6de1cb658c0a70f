"""How a child of a sweep ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.sweep.children import Children, Outcome
from jobs.sweep.plan import plan_children, read_arguments


def test_a_killed_child_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line is not the reason."""
    dies = "import os, signal; print('all is well', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(Children, "_start", lambda *_: subprocess.Popen([sys.executable, "-c", dies], text=True,
                                                                        stdout=subprocess.PIPE))  # fmt: skip
    child = plan_children(read_arguments(["prepare", "source=videos", "val_share=[0]", f"output={tmp_path}"]))[0]
    assert Children("prepare", {}).run(child) == Outcome("failed", "by SIGKILL")
