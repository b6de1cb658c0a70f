"""YAML of people and of outputs, parsed as data: no tag builds an object, no alias makes it endless."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 100_000  # with aliases followed: nine lines can name a billion values


def parse_yaml(text: str | bytes, loader: type = yaml.SafeLoader) -> Any:
    """The value of YAML text; ``loader`` is PyYAML's `SafeLoader` or `BaseLoader`.

    Raises:
        yaml.YAMLError: it is no YAML, has a tag that names a type, is nested too deeply or has too many values.
    """
    try:
        value = yaml.load(text, Loader=loader)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except ValueError as error:  # a date or a number that is none
        raise yaml.YAMLError(str(error)) from error
    _refuse_endless(value)
    return value


def _refuse_endless(value: Any) -> None:
    left, counted = [value], 0
    while left:
        counted += 1
        if counted > MOST_VALUES:
            raise yaml.YAMLError(f"has more than {MOST_VALUES} values with its aliases followed")
        node = left.pop()
        if isinstance(node, dict):
            left += node.values()
        elif isinstance(node, list | tuple | set):
            left += node
