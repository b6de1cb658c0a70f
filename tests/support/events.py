"""Lines of `log=json`, each of which must be an event."""

from __future__ import annotations

import json
from typing import Any

from jobs.core.events import KEYS


def events(text: str) -> list[dict[str, Any]]:
    """The events of a text; one line that is none, or JSON that no parser but Python's takes, fails."""
    found = [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]
    assert all(tuple(line) == KEYS for line in found)
    return found


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
