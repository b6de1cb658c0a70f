"""`log=json`: what a command prints as lines of JSON, one an event, for whatever collects logs; text is the default.

Every line is one object with the same keys: ``time`` (UTC), ``program``, ``run_key`` (of ``run.json``, null before the
output is claimed), ``step`` (of training, else null), ``event``, ``level``, ``message`` and ``fields``. Events go to
stderr, results (`report`, `files`, `table`) to stdout. Texts are as free of secrets as in text.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import numbers
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console

from jobs.core.errors import UserError
from jobs.core.redaction import public
from jobs.core.text import printable_lines, shown

LOG, LOG_VARIABLE = "log", "HIERA_LOG"
TEXT, JSON = "text", "json"
KEYS = ("time", "program", "run_key", "step", "event", "level", "message", "fields")
# How lines are marked that people read, those of workers too.
MARKED = {"warning: ": "warning", "error: ": "error", "critical: ": "error"}
Level = Literal["info", "warning", "error"]

_common: dict[str, Any] = {"program": None, "run_key": None}
_writing = threading.RLock()


def split_format(words: Sequence[str]) -> list[str]:
    """The words without ``log=...``; the format is kept in the environment, which child processes inherit.

    Raises:
        UserError: a format that does not exist.
    """
    for word in words:
        if word.startswith(f"{LOG}="):
            os.environ[LOG_VARIABLE] = word.removeprefix(f"{LOG}=")
    wanted = os.environ.get(LOG_VARIABLE) or TEXT
    if wanted not in (TEXT, JSON):
        del os.environ[LOG_VARIABLE]
        raise UserError(f"{LOG}={wanted}: must be {TEXT} or {JSON} (also in {LOG_VARIABLE}); use {LOG}={JSON}")
    return [word for word in words if not word.startswith(f"{LOG}=")]


def is_json() -> bool:
    """Whether this process prints events instead of text."""
    return os.environ.get(LOG_VARIABLE) == JSON


def format_words() -> list[str]:
    """What gives a command on another machine the format of this one."""
    return [f"{LOG}={JSON}"] if is_json() else []


def print_events() -> None:
    """From here on this process prints nothing but events: log records, warnings and what libraries print become some.

    What compiled code and child processes write does not come through here.
    """
    logging.captureWarnings(True)
    logging.getLogger().addHandler(EventHandler(logging.WARNING))
    sys.stdout, sys.stderr = EventLines(sys.stdout), EventLines(sys.stderr)


def bind(**facts: str | None) -> None:
    """Facts of every later line: ``program``, ``run_key``."""
    _common.update(facts)


@contextmanager
def bound(program: str) -> Iterator[None]:
    """Within, lines are of this program, which has no run yet."""
    former = dict(_common)
    bind(program=program, run_key=None)
    try:
        yield
    finally:
        _common.update(former)


def emit(
    event: str,
    message: str = "",
    fields: Mapping[str, Any] | None = None,
    *,
    level: Level = "info",
    step: int | None = None,
    stream: TextIO | None = None,
) -> None:
    """Print an event, to stderr if nothing else is wanted."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **_common,
        "step": step,
        "event": event,
        "level": level,
        "message": shown(message),
        "fields": public(dict(fields or {})),
    }
    _write(line, stream or sys.stderr)


def emit_log(text: str, *, step: int | None = None) -> None:
    """Print a line as people read it, which may begin with its level."""
    mark = next((mark for mark in MARKED if text.startswith(mark)), "")
    emit("log", text.removeprefix(mark), level=_level(MARKED.get(mark, "info")), step=step)


def emit_error(error: BaseException, event: str = "failed") -> None:
    """Print an error that nobody expected, with its traceback."""
    trace = "".join(traceback.format_exception(error))
    fields = {"error": type(error).__name__, "traceback": trace}
    emit(event, f"{type(error).__name__}: {error}", fields, level="error")


def relay(text: str, fields: Mapping[str, Any] | None = None, *, stream: TextIO | None = None) -> str:
    """Pass on a line of another command: its event as it is, with further fields; anything else as `output`.

    Returns:
        the line's message.
    """
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not (isinstance(line, dict) and tuple(line) == KEYS and isinstance(line["fields"], dict)):
        emit("output", text, fields, stream=stream)
        return text
    _write(public({**line, "fields": {**line["fields"], **(fields or {})}}), stream or sys.stderr)
    return str(line["message"])


def _write(line: Mapping[str, Any], stream: TextIO) -> None:
    raw = stream.raw if isinstance(stream, EventLines) else stream
    try:
        with _writing:  # threads print, too
            raw.write(json.dumps(_plain(line)) + "\n")
            raw.flush()
    except BrokenPipeError:
        Console().on_broken_pipe()  # ends the command silently, as for text


def _plain(value: Any) -> Any:
    """As JSON has it: printable text, no numbers that are none."""
    if isinstance(value, Mapping):
        return {shown(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and abs(float(value)) < float("inf"):
        return float(value)
    return printable_lines(str(value))


def _level(name: str) -> Level:
    return "error" if name in ("error", "critical") else "warning" if name == "warning" else "info"


class EventHandler(logging.Handler):
    """Log records as events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one; a record that cannot be formatted is reported, as logging does."""
        try:
            fields = {"logger": record.name}
            if record.exc_info and record.exc_info[0]:
                fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
            emit("log", record.getMessage(), fields, level=_level(record.levelname.lower()))
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)


class EventLines(io.TextIOBase):
    """Stands in for stdout or stderr: a line that is printed past this module becomes an event."""

    encoding = "utf-8"  # libraries look at it

    def __init__(self, raw: TextIO) -> None:
        super().__init__()
        self.raw = raw
        self._rest = ""
        atexit.register(self._end)

    def write(self, text: str) -> int:
        """Print the lines that are whole; of one that is redrawn (a progress bar) its last state."""
        with _writing:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if message := line.rpartition("\r")[2].strip():
                emit("output", message, stream=self.raw)
        return len(text)

    def flush(self) -> None:
        """Whole lines are flushed already."""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Of the stream itself, for child processes."""
        return self.raw.fileno()

    def _end(self) -> None:
        if self._rest.strip():
            self.write("\n")
