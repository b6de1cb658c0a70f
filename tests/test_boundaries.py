"""The rooms import one way. Reads the imports of every file; runs none of them.

`infra` holds no Python; `hiera_video` and `pipeline` know nothing of each other; `jobs` sees both; nothing sees `jobs`.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("hiera_video", "pipeline", "jobs", "tests")


@dataclass(frozen=True)
class Doors:
    """What one room may import, as dotted prefixes; the standard library is open to all."""

    rooms: frozenset[str]
    packages: frozenset[str]


DOORS = {
    "hiera_video": Doors(frozenset(), frozenset({"torch", "safetensors", "numpy"})),
    "pipeline": Doors(
        frozenset(),
        frozenset({"ray.data", "ray.util.metrics", "pyarrow", "boto3", "botocore", "decord", "av", "cv2", "numpy"}),
    ),
    "jobs": Doors(
        frozenset({"hiera_video", "pipeline"}),
        frozenset(
            {"torch", "ray", "deepspeed", "mlflow", "pyarrow", "numpy", "omegaconf", "yaml", "rich"}
            | {"av", "cv2", "matplotlib", "pandas", "psutil", "safetensors"}
            # only to name the errors that MLflow's stores let through
            | {"sqlalchemy", "boto3.exceptions", "botocore.exceptions"}
        ),
    ),
}


class Import(NamedTuple):
    """One imported module, `from a.b import c` as `a.b.c`, and the line it stands on."""

    module: str
    line: int


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a file; relative ones are resolved against its package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def hidden_imports(source: str) -> Iterator[int]:
    """Lines that import inside a function, or by name: `importlib.import_module`, `__import__`."""
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield node.lineno


def forbidden(source: str, room: str, package: str) -> list[str]:
    """The imports of a file in `room` that go through no door of that room."""
    doors = DOORS[room]
    allowed = doors.rooms | doors.packages | {room}
    return [
        f"line {line}: {module}"
        for module, line in imports(source, package)
        if module.partition(".")[0] not in sys.stdlib_module_names
        if not any(module == door or module.startswith(f"{door}.") for door in allowed)
        or _past_the_front(module, doors)
    ]


def _past_the_front(module: str, doors: Doors) -> bool:
    """Another room is entered by what its `__init__` offers, never by its files."""
    room, *inside = module.split(".")
    return room in doors.rooms and bool(inside) and (len(inside) > 1 or inside[0] not in _offered(room))


@functools.cache
def _offered(room: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / room / "__init__.py").read_text())
    (names,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    )
    return frozenset(ast.literal_eval(names))


def python_files(room: str) -> list[Path]:
    """The files of a room, relative to the repository."""
    return sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / room).rglob("*.py"))


def _package(path: Path) -> str:
    return ".".join(path.parent.parts)


@pytest.mark.parametrize("room", DOORS)
def test_every_import_goes_through_a_door(room: str) -> None:
    files = python_files(room)
    broken = {
        str(path): found
        for path in files
        if (found := forbidden((REPOSITORY / path).read_text(), room, _package(path)))
    }
    assert files
    assert not broken, f"{room} may import {sorted(DOORS[room].rooms | DOORS[room].packages)}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_inside_a_function(room: str) -> None:
    # The benchmark runner finds its modules by name: that is its work.
    exempt = Path("tests/benchmarks/__main__.py")
    broken = {
        str(path): lines
        for path in python_files(room)
        if path != exempt and (lines := list(hidden_imports((REPOSITORY / path).read_text())))
    }
    assert not broken


def test_infra_is_no_python_package() -> None:
    assert not python_files("infra")


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("hiera_video", "import pipeline"),
        ("hiera_video", "from ray import data"),
        ("hiera_video", "import mlflow.tracking"),
        ("pipeline", "from hiera_video import create_model"),
        ("pipeline", "import torch"),
        ("pipeline", "from ray import train"),
        ("pipeline", "import ray.train.torch"),
        ("pipeline", "from ..jobs import config"),
        ("pipeline", "from jobs.config import load_config"),
        ("jobs", "from tests.conftest import ray_cluster"),
        ("jobs", "import torchvision"),
        ("jobs", "from pipeline.storage import join"),
        ("jobs", "from pipeline import storage"),
    ],
)
def test_a_door_that_should_not_be_there_is_seen(room: str, line: str) -> None:
    assert forbidden(line, room, room) == [f"line 1: {next(imports(line, room)).module}"]


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("pipeline", "import ray.data"),
        ("pipeline", "from ray.data import ActorPoolStrategy"),
        ("pipeline", "from ray import data"),
        ("pipeline", "from . import storage"),
        ("jobs", "from pipeline import join"),
        ("hiera_video", "from torch.nn import functional"),
        ("hiera_video", "import dataclasses"),
    ],
)
def test_a_door_that_is_there_is_open(room: str, line: str) -> None:
    assert forbidden(line, room, room) == []


@pytest.mark.parametrize(
    "source",
    [
        "def run():\n    import torch",
        "class Job:\n    async def run(self):\n        if True:\n            from ray import data",
        "import importlib\nname = importlib.import_module('jobs')",
        "module = __import__('jobs')",
    ],
)
def test_a_hidden_import_is_seen(source: str) -> None:
    assert list(hidden_imports(source))
