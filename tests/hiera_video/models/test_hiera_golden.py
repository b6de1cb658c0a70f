"""The results have not changed since golden.json was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hiera_video.models.golden import GOLDEN, golden_values


def leaves(tree: Any, path: str = "") -> dict[str, float]:
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: value for name, branch in pairs for key, value in leaves(branch, f"{path}/{name}").items()}
    return {path: tree}


def test_golden_values() -> None:
    expected = leaves(json.loads(GOLDEN.read_text()))
    assert leaves(golden_values()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
