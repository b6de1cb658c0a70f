"""docs/upgrades.md lists every private API of other libraries that the packages use, and tests that exist."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import REPOSITORY, read

PAGE = Path("docs/upgrades.md")
PACKAGES = ("hiera_video", "pipeline", "jobs")
PUBLIC = {"_asdict", "_replace", "_fields", "_make"}  # of named tuples: documented
OF_THE_LANGUAGE = {*dir(type), "__file__", "__name__", "__path__", "__version__"}


def private_api(source: str) -> Iterator[str]:
    """Private names of other libraries in a source file: imported ones by their full name, others by attribute."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_own(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not _of_this_project(node.module or ""):
            for alias in node.names:
                if any(_is_private(part) for part in f"{node.module}.{alias.name}".split(".")):
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
            yield from {node.attr} - own - PUBLIC
        elif isinstance(node, ast.keyword) and node.arg is not None and _is_private(node.arg):
            yield node.arg


def _is_private(name: str) -> bool:
    return name.startswith("_") and name not in OF_THE_LANGUAGE


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _of_this_project(module: str) -> bool:
    top = module.partition(".")[0]
    return top in (*PACKAGES, "tests", "__future__") or top in sys.stdlib_module_names


def listed(name: str, page: str) -> bool:
    """Whether the page has a name, alone or at the end of a dotted one."""
    return re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", page) is not None


def test_every_private_api_is_listed() -> None:
    page = read(PAGE)
    missing = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*.py")
        for name in private_api(path.read_text())
        if not listed(name, page)
    }
    assert not missing, "add them to docs/upgrades.md, with the test that breaks when they change"


def test_nothing_is_listed_that_is_no_longer_used() -> None:
    sources = "\n".join(path.read_text() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
    named = {name.rpartition(".")[2] for row in rows() for name in re.findall(r"`([^`]+)`", row[0])}
    assert named - {"DataContext", "init", ""}
    assert not {name for name in named if name not in sources and "/" not in name}


@pytest.mark.parametrize("row", [0, 1, 2], ids=["API", "use", "test"])
def test_every_row_is_complete(row: int) -> None:
    assert all(cells[row] for cells in rows())


def test_the_tests_exist() -> None:
    named = {path for cells in rows() for path in re.findall(r"`(tests/[^`]+)`", cells[2])}
    assert named
    assert not {path for path in named if not (REPOSITORY / path).exists()}
    assert all("`tests/" in cells[2] for cells in rows())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from torch._subclasses.fake_tensor import FakeTensorMode", ["torch._subclasses.fake_tensor.FakeTensorMode"]),
        ("import torch\ntorch._softmax(x, -1, False)", ["_softmax"]),
        ("executor._resource_manager._get_total_resources()", ["_get_total_resources", "_resource_manager"]),
        ("import deepspeed\ndeepspeed.ops.__compatible_ops__ = {}", ["__compatible_ops__"]),
        ("class A:\n    def f(self, other):\n        self._x = other._x.__class__", []),
        ("row._asdict()", []),
        ('ray.init("local", _temp_dir=folder)', ["_temp_dir"]),
        ("from jobs.core.cli import _private", []),
    ],
)
def test_private_api_is_seen(line: str, found: list[str]) -> None:
    assert sorted(private_api(line)) == found


def rows() -> list[list[str]]:
    """The cells of the page's tables, without their headers."""
    lines = [line for line in read(PAGE).splitlines() if line.startswith("| ") and not line.startswith("| API")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
