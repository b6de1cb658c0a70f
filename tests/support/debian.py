"""Programs of Debian's packages that slow suites need: installed where that is possible, named where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

FOLDERS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def need(programs: str, packages: str) -> None:
    """Install packages when one of the programs is missing.

    Args:
        programs: names, with spaces between them.
        packages: Debian's, with spaces between them.
    """
    if not _missing(programs):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages.split()]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, capture_output=True, check=False, timeout=900, env=environment)
    if missing := _missing(programs):
        # Whoever asks for this suite must not take nothing for green.
        pytest.fail(f"this machine lacks {', '.join(missing)}; apt-get install {packages}")


def program(name: str) -> str:
    """The path of a program, also where only root looks."""
    found = shutil.which(name, path=FOLDERS)
    assert found, name
    return found


def _missing(programs: str) -> list[str]:
    return [name for name in programs.split() if shutil.which(name, path=FOLDERS) is None]
