"""How findings are shown."""

from __future__ import annotations

import io
import json

from rich.console import Console

from jobs.doctor.findings import as_json, as_table, found

GOOD = found("a", "disk", False, "10 % used", "free space")
BAD = found("b", "clock", True, "+30 s [red]", "start a time service")


def test_a_remedy_belongs_to_a_problem() -> None:
    assert (GOOD.ok, GOOD.remedy) == (True, "")
    assert (BAD.ok, BAD.remedy) == (False, "start a time service")


def test_the_table_begins_with_what_is_wrong_and_takes_no_markup() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_table([GOOD, BAD]))
    text = console.export_text()
    assert text.index("WRONG") < text.index("10 % used")
    assert "[red]" in text


def test_json_says_whether_all_is_well() -> None:
    assert json.loads(as_json([GOOD])) == {
        "ok": True,
        "findings": [{"host": "a", "check": "disk", "ok": True, "detail": "10 % used", "remedy": ""}],
    }
    assert json.loads(as_json([GOOD, BAD]))["ok"] is False
