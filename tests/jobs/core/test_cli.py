"""What all commands share, seen from a shell."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.core.cli import Command
from pipeline.manifest.errors import ManifestError
from pipeline.storage.files import read_bytes


@pytest.mark.parametrize("arguments", [["--help"], ["--print-config", "output=x"], ["--dry-run", "output=x"]])
def test_a_reader_that_closes_the_pipe_ends_the_command_silently(arguments: list[str]) -> None:
    """As `head` does once it has its lines."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs.sync", *arguments]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
    """Paths that a command reads."""

    source: str = ""
    data: str | None = None


class Shell:
    """Runs a function as a command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, run: Callable[[ReadingConfig], dict[str, Any]], *arguments: str) -> tuple[Any, str]:
        """Exit code, and what is printed as an error."""
        self._monkeypatch.setattr(sys, "argv", ["reading", *arguments])
        self._monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(SystemExit) as ended:
            Command("reading", ReadingConfig, run, description="Reads.")()
        return ended.value.code, self._capsys.readouterr().err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        ("{folder}/missing", "source={folder}/missing: no such file or directory; check the path"),
        (
            "{folder}/set/shards/0",
            "data={folder}/set: {folder}/set/shards/0: no such file or directory; check the path",
        ),
        ("{folder}/elsewhere", "{folder}/elsewhere: no such file or directory; check the path"),
    ],
)
def test_a_path_that_storage_cannot_read_is_named_by_its_key(
    read: str, message: str, tmp_path: Path, shell: Shell
) -> None:
    def run(config: ReadingConfig) -> dict[str, Any]:
        return {"bytes": len(read_bytes(read.format(folder=tmp_path)))}

    printed = f"reading: {message.format(folder=tmp_path)}\n"
    assert shell(run, f"source={tmp_path}/missing", f"data={tmp_path}/set") == (2, printed)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            "{folder}/list.csv: has no column path; rename one",
            "source={folder}/list.csv: has no column path; rename one",
        ),
        ("{folder}/set/a.csv: is empty; check it", "data={folder}/set: {folder}/set/a.csv: is empty; check it"),
        ("classes=x: is empty; name them", "classes=x: is empty; name them"),
    ],
)
def test_what_is_wrong_in_a_given_file_is_named_by_its_key(
    broken: str, message: str, tmp_path: Path, shell: Shell
) -> None:
    def run(config: ReadingConfig) -> dict[str, Any]:
        raise ManifestError(broken.format(folder=tmp_path))

    printed = f"reading: {message.format(folder=tmp_path)}\n"
    assert shell(run, f"source={tmp_path}/list.csv", f"data={tmp_path}/set") == (2, printed)


@pytest.mark.parametrize(
    ("ended", "code", "printed"),
    [(None, 0, ""), (0, 0, ""), (4, 4, ""), (True, 1, ""), ("no mode", 1, "no mode\n"), (("a", 1), 1, "('a', 1)\n")],
)
def test_a_command_that_exits_itself_ends_as_python_would(ended: Any, code: int, printed: str, shell: Shell) -> None:
    def run(config: ReadingConfig) -> dict[str, Any]:
        raise SystemExit(ended)

    assert shell(run) == (code, printed)


@pytest.mark.parametrize(("name", "usage"), [("export", "[key=value ...]"), ("finetune", "[RECIPE] [key=value ...]")])
def test_usage_names_recipes_where_there_are_any(
    name: str, usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit):
        Command(name, ReadingConfig, lambda _: {}, description="Reads.")()
    assert capsys.readouterr().out.startswith(f"usage: python -m jobs.{name} {usage} [--help")
