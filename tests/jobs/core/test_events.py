"""`log=json`, seen from a shell: every line is an event, whoever printed it, and no line holds a secret."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.core.errors import UserError
from jobs.core.events import EventLines, emit, emit_log, format_words, relay, split_format
from tests.support.events import events

PASSWORD = "hunter2-in-a-uri"
COMMAND = """
import dataclasses, logging, os, subprocess, sys, threading, warnings
from jobs.core.cli import Command, echo, print_line, print_tables
from jobs.core.errors import StopRequestedError, UserError
from rich.table import Table
@dataclasses.dataclass(frozen=True)
class Config:
    source: str = ""
def run(config):
    {body}
    return {{"clips": 3, "loss": float("nan"), "set": "s3://someone:{password}@bucket/set"}}
Command("odd", Config, run, description="Odd.", keep_report=False)()
"""
BODIES = {
    "echo": ("echo('reads http://someone:{password}@host', warning=True)", "log", "warning"),
    "styled": ("print_line(('left out', 'yellow'), ': warning')", "log", "info"),
    "logged": ("logging.getLogger('library').error('at %s', 'http://someone:{password}@host')", "log", "error"),
    "warned": ("warnings.warn('at http://someone:{password}@host')", "log", "warning"),
    "printed": ("print('at http://someone:{password}@host', end='')", "output", "info"),
    "in a thread": (
        "t = threading.Thread(target=lambda: [][1]); t.start(); t.join()",
        "error",
        "error",
    ),
    "table": ("t = Table('a', 'b'); t.add_row('1', '2'); print_tables(t)", "table", "info"),
}


def ended(
    tmp_path: Path, body: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(COMMAND.format(body=body.format(password=PASSWORD), password=PASSWORD))
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **(environment or {})},
    )


@pytest.mark.parametrize("name", BODIES)
def test_whoever_prints_prints_events(name: str, tmp_path: Path) -> None:
    body, event, level = BODIES[name]
    done = ended(tmp_path, body, "log=json")
    assert done.returncode == 0, done.stderr
    printed = events(done.stderr) + events(done.stdout)
    assert PASSWORD not in done.stderr + done.stdout
    assert [line["level"] for line in printed if line["event"] == event] == [level]
    assert {line["program"] for line in printed} == {"odd"}
    assert [line["event"] for line in printed if line["event"] not in (event,)] == ["started", "ended", "report"]
    (report,) = (line for line in printed if line["event"] == "report")
    assert report["fields"] == {"clips": 3, "loss": "nan", "set": "s3://bucket/set"}


@pytest.mark.parametrize(
    ("body", "code", "event"),
    [
        ("raise UserError('source=x: must be a folder; give one')", 2, "refused"),
        ("raise StopRequestedError('finished work is kept')", 3, "stopped"),
        ("raise ZeroDivisionError('at http://someone:{password}@host')", 1, "failed"),
        ("raise KeyboardInterrupt", 1, "log"),
        ("sys.exit(4)", 4, "ended"),
    ],
)
def test_every_end_is_an_event_and_the_last_one(body: str, code: int, event: str, tmp_path: Path) -> None:
    done = ended(tmp_path, body, "log=json")
    printed = events(done.stderr)
    assert (done.returncode, done.stdout) == (code, "")
    assert event in [line["event"] for line in printed]
    assert (printed[-1]["event"], printed[-1]["fields"]["exit_code"]) == ("ended", code)
    assert PASSWORD not in done.stderr


def test_a_traceback_is_a_field(tmp_path: Path) -> None:
    (failed,) = (line for line in events(ended(tmp_path, "[][1]", "log=json").stderr) if line["event"] == "failed")
    assert failed["message"] == "IndexError: list index out of range"
    assert failed["fields"]["traceback"].startswith("Traceback (most recent call last):\n")


def test_text_is_the_default(tmp_path: Path) -> None:
    body = "echo('slow', warning=True)"
    for arguments, environment in ([], {}), (["log=text"], {"HIERA_LOG": "json"}):
        done = ended(tmp_path, body, *arguments, environment=environment)
        assert done.stderr == "warning: slow\n"
        assert "clips" in done.stdout
        assert not done.stdout.startswith("{")


def test_the_environment_asks_for_events_too(tmp_path: Path) -> None:
    assert events(ended(tmp_path, "pass", environment={"HIERA_LOG": "json"}).stderr)


@pytest.mark.parametrize("flag", ["--help", "--print-config"])
def test_documents_stay_what_they_are(flag: str, tmp_path: Path) -> None:
    plain, asked = (ended(tmp_path, "pass", *arguments, flag) for arguments in ([], ["log=json"]))
    assert (plain.stdout, plain.stderr) == (asked.stdout, asked.stderr)
    assert plain.stdout


def test_a_dry_run_prints_events(tmp_path: Path) -> None:
    done = ended(tmp_path, "pass", "--dry-run", "log=json", "source=videos")
    config, _report = events(done.stdout)
    assert (config["event"], config["fields"]) == ("config", {"source": "videos"})


@pytest.mark.parametrize("wanted", ["yaml", "JSON", "[json,text]", "1"])
def test_another_format_is_a_mistake(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_LOG", "")
    with pytest.raises(UserError) as refused:
        split_format([f"log={wanted}", "a=b"])
    assert str(refused.value) == f"log={wanted}: must be text or json (also in HIERA_LOG); use log=json"


def test_the_format_is_taken_from_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_LOG", "text")
    assert split_format(["demo", "log=json", "a=log=json"]) == ["demo", "a=log=json"]
    assert format_words() == ["log=json"]


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [("warning: slow", "warning", "slow"), ("error: lost", "error", "lost"), ("step 3: fine", "info", "step 3: fine")],
)
def test_a_line_may_begin_with_its_level(line: str, level: str, message: str, capsys: Any) -> None:
    emit_log(line, step=3)
    (event,) = events(capsys.readouterr().err)
    assert (event["level"], event["message"], event["step"]) == (level, message, 3)


def test_a_relayed_event_keeps_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    emit("step", "step 4", {"loss": 0.5}, step=4)
    line = capsys.readouterr().err
    assert relay(line, {"child": "a"}) == "step 4"
    assert events(capsys.readouterr().err)[0] == {**json.loads(line), "fields": {"loss": 0.5, "child": "a"}}


@pytest.mark.parametrize("line", ["no event", "{}", "[1]", '{"time": 1', "null", "1e999"])
def test_what_is_no_event_is_relayed_as_output(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert relay(line) == line
    (event,) = events(capsys.readouterr().err)
    assert (event["event"], event["message"]) == ("output", line)


def test_a_relayed_event_is_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    emit("log", "fine")
    line = json.loads(capsys.readouterr().err)
    line["fields"] = {"token": "abcdefgh", "uri": f"http://someone:{PASSWORD}@host", "odd": "\x1b[2J"}
    relay(json.dumps(line))
    printed = capsys.readouterr().err
    assert PASSWORD not in printed
    assert "abcdefgh" not in printed
    assert "\\u001b" not in printed


def test_a_name_cannot_forge_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    forged = json.dumps({"time": "now", "event": "ended"})
    emit("log", f"left out a.mp4\n{forged}", {"name": f"a\r\n{forged}"})
    (event,) = events(capsys.readouterr().err)
    assert event["event"] == "log"


def test_of_a_line_that_is_redrawn_the_last_state_counts() -> None:
    stream = io.StringIO()
    lines = EventLines(stream)
    for part in ("1 of 2\r", "2 of 2\n", "\n", "rest"):
        lines.write(part)
    assert [event["message"] for event in events(stream.getvalue())] == ["2 of 2"]
