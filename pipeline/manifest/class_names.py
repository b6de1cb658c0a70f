"""The forms in which class lists are published, all to one list of names in the order of the indices.

JSON: a list of names, an object from name to index (Kinetics in PySlowFast, Something-Something), or from index to name
(`id2label` of a Hugging Face config.json). Text: a name a line, or an index and a name. CSV: with or without a header,
a column of names, and perhaps one of indices.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.storage.records import parse_json

_HEADER = ("name", "label", "class", "class_name", "action", "id", "index", "label_id", "class_id")
_NAME_HEADER = ("name", "label", "class", "class_name")  # of a single column: `action` may be a class
_MAPPINGS = ("id2label", "label2id")


def parse_class_names(text: str, suffix: str) -> list[str]:
    """The names in the order of their indices.

    Args:
        suffix: of the file's name; ``.json`` and ``.csv`` are read as such, all others as lines.

    Raises:
        ValueError: a JSON value of another form, or indices that are not 0 to n - 1, each once.
    """
    if suffix == ".json":
        names = _from_json(parse_json(text))
    elif suffix == ".csv":
        names = _from_rows(list(csv.reader(text.split("\n"), skipinitialspace=True)))
    else:
        names = _from_lines([line.strip() for line in text.split("\n") if line.strip()])
    names = [unquoted(name) for name in names]
    if "" in names:  # left out, it would move the indices of all that follow
        raise ValueError(f"index {names.index('')} has no name; give one to every index")
    return names


def unquoted(name: str) -> str:
    """A name without the blanks and the pair of quotes around it."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        return name[1:-1].replace(name[0] * 2, name[0]).strip()
    return name


def _from_json(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _MAPPINGS if isinstance(value.get(key), Mapping)), value)
        return _from_mapping(inner)
    if not isinstance(value, list) or not all(isinstance(name, str | int) for name in value):
        raise ValueError("must be a list of names, or an object of names and indices")
    return [str(name) for name in value]


def _from_mapping(entries: Mapping[str, Any]) -> list[str]:
    if not all(isinstance(value, str | int) for value in entries.values()):
        raise ValueError("must have names and indices alone")
    keys, values = [str(key) for key in entries], [str(value) for value in entries.values()]
    by_name, by_index = _ordered(values, keys), _ordered(keys, values)
    # A JSON number is an index; text on both sides may be either.
    if by_name and by_index and by_name != by_index and all(isinstance(value, str) for value in entries.values()):
        raise ValueError("has numbers as names and as indices; give a JSON list")
    names = by_name or by_index
    if names is None:
        raise ValueError(f"must have the indices 0 to {len(entries) - 1}, each once")
    return names


def _from_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if rows and all(cell.strip().lower() in (_HEADER if len(rows[0]) > 1 else _NAME_HEADER) for cell in rows[0]):
        rows = rows[1:]
    if any(len(row) != len(rows[0]) or len(row) > 2 for row in rows):
        # Names with commas and without quotes: a name a line.
        return [",".join(row) for row in rows]
    if not rows or len(rows[0]) == 1:
        return [row[0] for row in rows]
    first, second = [row[0] for row in rows], [row[1] for row in rows]
    names = _ordered(first, second) or _ordered(second, first)
    return [",".join(row) for row in rows] if names is None else names


def _from_lines(lines: Sequence[str]) -> list[str]:
    """Names, or if every line begins with one of the indices 0 to n - 1, these names in that order."""
    split = [re.fullmatch(r"(\d+)[ \t,:]+(.+)", line) for line in lines]
    found = [(match[1], match[2]) for match in split if match]
    names = _ordered([index for index, _ in found], [name for _, name in found]) if len(found) == len(lines) else None
    return list(lines) if names is None else names


def _ordered(indices: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """The names by their indices; None unless these are 0 to n - 1, each once."""
    if not indices or not all(re.fullmatch(r"\d{1,9}", index.strip()) for index in indices):
        return None
    numbers = [int(index) for index in indices]
    if sorted(numbers) != list(range(len(numbers))):
        return None
    return [name for _, name in sorted(zip(numbers, names, strict=True))]
