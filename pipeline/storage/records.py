"""JSON that this project wrote and reads back: whatever is found instead is one message, not a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from pipeline.storage.errors import StorageError

Types = type | tuple[type, ...]
DAMAGED_REMEDY = "restore it, or use another folder"
LONGEST_PATH = 1024
"""Characters of a path in a record: as long as a key of S3."""


class DamagedError(StorageError):
    """A record that is not as it was written."""


def parse_json(content: str | bytes) -> Any:
    """The value that JSON text holds.

    Raises:
        ValueError: it is no JSON, or nested more deeply than any record is.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def as_record(uri: str, content: str | bytes, entries: Mapping[str, Types] | None = None) -> dict[str, Any]:
    """A JSON object with at least these entries, each of its type.

    Raises:
        DamagedError: it is something else; the message says what.
    """
    try:
        record = parse_json(content)
    except ValueError as error:
        raise DamagedError(uri, f"is damaged: no JSON ({error})", DAMAGED_REMEDY) from error
    if not isinstance(record, dict):
        raise DamagedError(uri, f"is damaged: must hold an object, not a {type(record).__name__}", DAMAGED_REMEDY)
    for key, kind in (entries or {}).items():
        if not _is_of(record.get(key), kind):
            found = f"a {type(record[key]).__name__}" if key in record else "missing"
            raise DamagedError(uri, f"is damaged: its {key!r} is {found}", DAMAGED_REMEDY)
    return record


def as_list(uri: str, content: str | bytes, entries: Mapping[str, Types]) -> list[dict[str, Any]]:
    """A JSON array of objects with at least these entries each; otherwise as `as_record`."""
    try:
        found = parse_json(content)
    except ValueError as error:
        raise DamagedError(uri, f"is damaged: no JSON ({error})", DAMAGED_REMEDY) from error
    if not isinstance(found, list):
        raise DamagedError(uri, f"is damaged: must hold a list, not a {type(found).__name__}", DAMAGED_REMEDY)
    return [as_record(uri, json.dumps(one), entries) for one in found]


def texts_of(uri: str, record: Mapping[str, Any], key: str) -> list[str]:
    """An entry of a record that is a list of texts.

    Raises:
        DamagedError: it is something else.
    """
    found = record.get(key)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DamagedError(uri, f"is damaged: its {key!r} must be a list of texts", DAMAGED_REMEDY)
    return found


def paths_within(uri: str, paths: Iterable[Any]) -> list[str]:
    """Paths that a record names relative to its folder or table, checked: whoever wrote it may have named any file.

    Raises:
        DamagedError: one of them leaves the folder.
    """
    found = list(paths)
    for path in found:
        if not _lies_within(path):
            raise DamagedError(uri, f"is damaged: names a file outside of it, {str(path)[:80]}", DAMAGED_REMEDY)
    return found


def _lies_within(path: Any) -> bool:
    """Whether a relative path stays below its folder, also once it is percent-decoded, however often."""
    if not isinstance(path, str) or not 0 < len(path) <= LONGEST_PATH:
        return False
    forms = [path]
    while (decoded := unquote(forms[-1])) != forms[-1]:
        forms.append(decoded)
    return not any(re.match(r"[/\\]", form) or re.search(r"://|\0|(^|[/\\])\.\.([/\\]|$)", form) for form in forms)


def is_whole_number(value: Any) -> bool:
    """Whether a JSON value is an integer from 0 on, which fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def _is_of(value: Any, kind: Types) -> bool:
    return is_whole_number(value) if kind is int else isinstance(value, kind)
