"""What reaches stderr past `jobs.core.cli`: errors, log records, warnings, without secrets and control characters."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

from jobs.core.events import emit_error, is_json
from jobs.core.text import printable_lines, shown


def clean_stderr() -> None:
    """Install it for this process: the command, its threads, and the libraries that log and warn."""
    sys.excepthook = _write
    sys.unraisablehook = lambda unraisable: _write(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    threading.excepthook = _write_of_thread
    logging.setLogRecordFactory(CleanRecord)
    formatted = warnings.formatwarning
    if getattr(formatted, "__name__", "") != "clean_warning":

        def clean_warning(*arguments: Any, **named: Any) -> str:
            return printable_lines(formatted(*arguments, **named)) + "\n"

        warnings.formatwarning = clean_warning


class CleanRecord(logging.LogRecord):
    """A log record of one printable line without secrets, whichever handler writes it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.exc_info and self.exc_info[0]:  # formatters take the text that is there
            self.exc_text = printable_lines("".join(traceback.format_exception(*self.exc_info)))

    def getMessage(self) -> str:  # noqa: N802 the base class's name
        return shown(super().getMessage())


def _write(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if is_json():
        emit_error(error or kind(), event="error")
        return
    sys.stderr.write(printable_lines("".join(traceback.format_exception(kind, error, trace))) + "\n")


def _write_of_thread(args: threading.ExceptHookArgs) -> None:
    if issubclass(args.exc_type, SystemExit):
        return
    if not is_json():
        sys.stderr.write(f"exception in thread {shown(args.thread.name if args.thread else 'unknown')}:\n")
    _write(args.exc_type, args.exc_value, args.exc_traceback)
