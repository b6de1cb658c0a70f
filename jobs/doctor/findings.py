"""What the doctor finds: one line a check, ok or with its remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from jobs.core.redaction import without_secrets
from jobs.core.text import plain


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one host."""

    host: str
    check: str
    ok: bool
    detail: str
    """What was seen, with figures and units."""
    remedy: str = ""
    """What to do; empty when nothing is wrong."""


def found(host: str, check: str, problem: bool, detail: str, remedy: str) -> Finding:
    """A finding without secrets, whose remedy counts only where there is a problem."""
    return Finding(host, check, not problem, without_secrets(detail), remedy if problem else "")


def as_table(findings: Sequence[Finding]) -> Table:
    """For a person: what is wrong first."""
    table = Table("", "host", "check", "seen", "remedy", title="doctor", title_justify="left")
    for finding in sorted(findings, key=lambda finding: finding.ok):
        mark = "ok" if finding.ok else "WRONG"
        table.add_row(*map(plain, (mark, finding.host, finding.check, finding.detail, finding.remedy)))
    return table


def as_json(findings: Sequence[Finding]) -> str:
    """For a program: the findings as a list, and whether all are ok."""
    return json.dumps(
        {"ok": all(finding.ok for finding in findings), "findings": list(map(asdict, findings))}, indent=1
    )
