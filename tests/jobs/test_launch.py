"""What `launch` runs and how it ends; `tests/infra/test_job_submit.py` launches inside a real submitted job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.core.errors import UserError
from jobs.core.signals import stopping_on_sigterm
from jobs.launch import exit_code, read_arguments


def test_the_command_line_of_the_job_is_handed_on_unchanged() -> None:
    config = read_arguments(["gpus=8", "stop_on_mistake=true", "tag", "demo", "source=a b", "init=models:/x@y"])
    assert (config.gpus, config.stop_on_mistake) == (8, True)
    assert config.command == [sys.executable, "-m", "jobs.tag", "demo", "source=a b", "init=models:/x@y"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpus=-1", "tag"], "gpus=-1: must not be negative; use 0"),
        (["gpu_minutes=0", "tag"], "gpu_minutes=0.0: must be positive; use 60"),
        (["gpu=1", "tag"], "no such key, perhaps gpus is meant"),
        (["demo"], "must be one of prepare, pretrain"),
    ],
)
def test_a_wrong_key_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_arguments(words)
    assert message in str(error.value)


def test_a_mistake_ends_the_launch_before_anything_is_asked_for() -> None:
    """No Ray is started: with one, this would take half a minute longer, and gpus=1 would wait for an hour."""
    command = [sys.executable, "-m", "jobs.launch", "gpus=1", "prepare", "source=/missing", "output=/tmp/never", "a=b"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2, finished.stderr
    assert "a=b: no such key" in finished.stderr


def test_sigterm_waits_for_the_command_to_end_in_its_own_way() -> None:
    """As Ray stops a job: the signal reaches this process and the command's."""
    stopper = f"import os, time; time.sleep(3); os.kill({os.getpid()}, {signal.SIGTERM})"
    started = time.monotonic()
    with stopping_on_sigterm("kept"), subprocess.Popen([sys.executable, "-c", stopper]):
        # The command ends itself after this process has had its signal.
        assert exit_code([sys.executable, "-c", "import sys, time; time.sleep(5); sys.exit(3)"]) == 3
    assert time.monotonic() - started > 4
