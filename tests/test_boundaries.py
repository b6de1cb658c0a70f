"""Imports go one way: between packages, and inside a package from folder to folder below it. Files are read, not run.

`infra` holds no Python; `hiera_video` and `pipeline` know nothing of each other; `jobs` sees both; nothing sees `jobs`.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("hiera_video", "pipeline", "jobs", "tests")


@dataclass(frozen=True)
class Doors:
    """What one package may import, as dotted prefixes; the standard library is open to all."""

    inner: frozenset[str]
    packages: frozenset[str]


DOORS = {
    "hiera_video": Doors(frozenset(), frozenset({"torch", "safetensors", "numpy"})),
    "pipeline": Doors(
        frozenset(),
        frozenset(
            {"ray.data", "ray.util.metrics", "pyarrow", "boto3", "botocore", "tenacity", "decord", "av", "cv2", "numpy"}
        ),
    ),
    "jobs": Doors(
        frozenset({"hiera_video", "pipeline"}),
        frozenset(
            {"torch", "ray", "deepspeed", "mlflow", "pyarrow", "numpy", "omegaconf", "yaml", "rich"}
            | {"av", "cv2", "jinja2", "matplotlib", "pandas", "psutil", "safetensors"}
            # only to name the errors that MLflow's stores let through
            | {"sqlalchemy", "boto3.exceptions", "botocore.exceptions"}
        ),
    ),
}


# From top to bottom: a folder imports folders of lower lines only. `jobs` has its commands above all of these.
LAYERS = {
    "hiera_video": (
        ("__init__",),
        ("inference", "analysis", "weights"),
        ("augmentation", "metrics", "optimization"),
        ("models",),
        ("rules",),
    ),
    "pipeline": (
        ("prepare", "datasets"),
        ("tagging", "transcode", "shards"),
        ("decode", "manifest"),
        ("storage",),
        ("ray_data", "sampling"),
        ("schema", "hashing"),
        ("seeds",),
    ),
    "jobs": (
        ("demo", "sweep"),
        ("sweeping",),
        ("prepare", "inspect", "pretrain", "finetune", "evaluate", "tag", "compare", "sync", "export", "register"),
        ("training", "tagging"),
        ("checkpoints", "scoring"),
        ("supervision", "weights"),
        ("runs", "reports"),
        ("core", "synthetic"),
    ),
}
MOST_FILES_IN_A_FOLDER = 15


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


def forbidden(source: str, package: str, folder: str) -> list[str]:
    """The imports of a file in `folder` that `package` may not import."""
    doors = DOORS[package]
    allowed = doors.inner | doors.packages | {package}
    return [
        f"line {line}: {module}"
        for module, line in imports(source, folder)
        if module.partition(".")[0] not in sys.stdlib_module_names
        if not any(module == door or module.startswith(f"{door}.") for door in allowed)
    ]


def upward(source: str, path: Path) -> list[str]:
    """The imports of a file from a folder that does not lie below its own."""
    package, own = path.parts[0], _folder(path.parts[1:])
    return [
        f"line {line}: {module}"
        for module, line in imports(source, ".".join(path.parent.parts))
        if module.startswith(f"{package}.")
        for other in [_folder(tuple(module.split(".")[1:]))]
        if other != own and _layer(package, other) <= _layer(package, own)
    ]


def _folder(parts: tuple[str, ...]) -> str:
    """The folder of a file or module below its package; a file directly in the package counts by its own name."""
    return parts[0].removesuffix(".py")


def _layer(package: str, folder: str) -> int:
    """Number of the layer, 0 at the top; commands of `jobs`, which have no entry of their own, are the top."""
    found = [number for number, layer in enumerate(LAYERS[package]) if folder in layer]
    return found[0] if found else 0


def python_files(package: str) -> list[Path]:
    """The files of a package, relative to the repository."""
    return sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / package).rglob("*.py"))


def _package(path: Path) -> str:
    return ".".join(path.parent.parts)


@pytest.mark.parametrize("package", DOORS)
def test_every_import_goes_through_a_door(package: str) -> None:
    files = python_files(package)
    broken = {
        str(path): found
        for path in files
        if (found := forbidden((REPOSITORY / path).read_text(), package, _package(path)))
    }
    assert files
    assert not broken, f"{package} may import {sorted(DOORS[package].inner | DOORS[package].packages)}"


@pytest.mark.parametrize("package", LAYERS)
def test_no_folder_imports_upward(package: str) -> None:
    broken = {
        str(path): found for path in python_files(package) if (found := upward((REPOSITORY / path).read_text(), path))
    }
    assert not broken


@pytest.mark.parametrize("package", LAYERS)
def test_every_folder_has_a_layer(package: str) -> None:
    listed = {name for layer in LAYERS[package] for name in layer}
    found = {_folder(path.parts[1:]) for path in python_files(package)}
    assert found - {"__init__"} == listed - {"__init__"}


@pytest.mark.parametrize("package", LAYERS)
def test_folders_are_small(package: str) -> None:
    counts = Counter(path.parent for path in python_files(package) if path.name != "__init__.py")
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES_IN_A_FOLDER}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_inside_a_function(package: str) -> None:
    # The benchmark runner finds its modules by name: that is its work.
    exempt = Path("tests/benchmarks/__main__.py")
    broken = {
        str(path): lines
        for path in python_files(package)
        if path != exempt and (lines := list(hidden_imports((REPOSITORY / path).read_text())))
    }
    assert not broken


def test_infra_is_no_python_package() -> None:
    assert not python_files("infra")


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("hiera_video", "import pipeline"),
        ("hiera_video", "from ray import data"),
        ("hiera_video", "import mlflow.tracking"),
        ("pipeline", "from hiera_video import create_model"),
        ("pipeline", "import torch"),
        ("pipeline", "from ray import train"),
        ("pipeline", "import ray.train.torch"),
        ("pipeline", "from ..jobs import config"),
        ("pipeline", "from jobs.core.config import load_config"),
        ("jobs", "from tests.conftest import ray_cluster"),
        ("jobs", "import torchvision"),
    ],
)
def test_a_door_that_should_not_be_there_is_seen(package: str, line: str) -> None:
    assert forbidden(line, package, package) == [f"line 1: {next(imports(line, package)).module}"]


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("pipeline", "import ray.data"),
        ("pipeline", "from ray.data import ActorPoolStrategy"),
        ("pipeline", "from ray import data"),
        ("pipeline", "from . import storage"),
        ("jobs", "from pipeline.storage.files import join"),
        ("hiera_video", "from torch.nn import functional"),
        ("hiera_video", "import dataclasses"),
    ],
)
def test_a_door_that_is_there_is_open(package: str, line: str) -> None:
    assert forbidden(line, package, package) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/storage/files.py", "from pipeline.decode.decoder import IsolatedDecoder"),
        ("pipeline/schema.py", "import pipeline.storage.files"),
        ("pipeline/decode/child.py", "from pipeline.manifest import readers"),
        ("jobs/core/cli.py", "from jobs.runs.claim import Claim"),
        ("jobs/training/loop.py", "from jobs.pretrain import run"),
        ("jobs/training/loop.py", "from jobs import pretrain"),
        ("hiera_video/models/hiera.py", "from ..weights import backbone"),
    ],
)
def test_an_upward_import_is_seen(path: str, line: str) -> None:
    assert upward(line, Path(path))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/decode/decoder.py", "from pipeline.storage.files import local_copy"),
        ("pipeline/decode/decoder.py", "from pipeline.decode import child"),
        ("jobs/pretrain.py", "from jobs.training.driver import run_training"),
        ("jobs/training/loop.py", "from pipeline.shards.reader import open_prepared"),
    ],
)
def test_a_downward_import_is_allowed(path: str, line: str) -> None:
    assert not upward(line, Path(path))


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
