"""Imports go one way: between packages, and inside a package from folder to folder below it. Files are read, not run.

`infra` holds no Python; `hiera_video` and `pipeline` know nothing of each other; `jobs` sees both; nothing sees `jobs`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
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
            | {"deltalake", "PIL"}
        ),
    ),
    "jobs": Doors(
        frozenset({"hiera_video", "pipeline"}),
        frozenset(
            {"torch", "ray", "deepspeed", "mlflow", "pyarrow", "numpy", "omegaconf", "yaml", "rich"}
            | {
                "prometheus_client",
                "av",
                "cv2",
                "jinja2",
                "markupsafe",
                "matplotlib",
                "pandas",
                "psutil",
                "safetensors",
                "usearch",
                "onnxruntime",
            }
            # only to name the errors that MLflow's stores let through
            | {"sqlalchemy", "boto3.exceptions", "botocore.exceptions"}
            # only to name the errors that Ray's job client lets through
            | {"aiohttp.client_exceptions"}
        ),
    ),
}


# From top to bottom: a folder imports folders of lower lines only. In `jobs` a command is a file, or a folder with the
# parts that serve it alone.
LAYERS = {
    "hiera_video": (
        ("__init__",),
        ("inference", "analysis", "weights"),
        ("augmentation", "metrics", "optimization"),
        ("models",),
        ("rules", "on_device", "flat_optimizer"),
    ),
    "pipeline": (
        ("prepare", "datasets"),
        ("tagging", "transcode", "shards"),
        ("decode", "manifest"),
        ("storage", "confinement"),
        ("ray_data", "sampling"),
        ("schema", "hashing"),
        ("seeds", "series", "media"),
    ),
    "jobs": (
        ("main", "demo", "launch"),
        ("submit",),
        ("sweep", "plan"),
        (
            "prepare",
            "inspect",
            "doctor",
            "pretrain",
            "finetune",
            "evaluate",
            "tag",
            "maintain",
            "search",
            "duplicates",
            "suggest",
            "compare",
            "sync",
            "export",
            "register",
        ),
        ("planning",),
        ("training", "tagging", "finding"),
        ("checkpoints", "scoring"),
        ("supervision", "weights"),
        ("runs", "reports"),
        ("core", "synthetic"),
    ),
}
MOST_FILES_IN_A_FOLDER = 15
MOST_LINES_OF_A_COMMAND = 120

# A test file of a package is `test_FILE.py` or `test_FILE_faults.py` at the path of the file; no other names but these.
OTHER_TEST_FILES = {
    "tests/jobs/reports/test_html_properties.py": "text from data on every printer, picture and page",
    "tests/jobs/test_tag_s3.py": "of jobs/tag.py, on a real S3 server",
    "tests/jobs/test_planted_keys.py": "secrets of the environment, in all that commands leave",
    "tests/jobs/test_bombs.py": "small files that become enormous, for every reader",
    "tests/jobs/test_read_back_properties.py": "damage in every file that is read back",
    "tests/hiera_video/test_init.py": "of hiera_video/__init__.py",
    "tests/jobs/recipes/test_finetune.py": "of the folder jobs/recipes/finetune",
    "tests/jobs/recipes/test_pretrain.py": "of the folder jobs/recipes/pretrain",
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


def names_no_file(test: Path, files: Collection[Path]) -> bool:
    """Whether a test file of a package is named after none of the package's ``files``."""
    name = test.stem.removeprefix("test_")
    folder = Path(*test.parts[1:-1])
    return not {folder / f"{name}.py", folder / f"{name.removesuffix('_faults')}.py"} & set(files)


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
    counts = Counter(path.parent for path in python_files(package))
    assert not {str(path): count for path, count in counts.items() if count > MOST_FILES_IN_A_FOLDER}


def test_commands_are_short() -> None:
    """Configuration, `run` and `main`; the parts are in the folders."""
    commands = [path for path in python_files("jobs") if path.parent == Path("jobs") or path.name == "command.py"]
    lines = {str(path): len((REPOSITORY / path).read_text().splitlines()) for path in commands}
    assert len(lines) > 15
    assert not {path: count for path, count in lines.items() if count > MOST_LINES_OF_A_COMMAND}


def test_every_test_file_is_named_after_the_file_that_it_tests() -> None:
    files = [path for package in LAYERS for path in python_files(package)]
    tests = [path for path in python_files("tests") if path.name.startswith("test_") and path.parts[1] in LAYERS]
    odd = {str(path) for path in tests if names_no_file(path, files)}
    assert odd == OTHER_TEST_FILES.keys()
    assert len(odd) <= 0.05 * len(tests)


@pytest.mark.parametrize(
    ("test", "odd"),
    [
        ("tests/pipeline/x/test_y.py", False),
        ("tests/pipeline/x/test_y_faults.py", False),
        ("tests/pipeline/x/test_y_kills.py", True),
        ("tests/pipeline/test_y.py", True),
        ("tests/jobs/x/test_y.py", True),
    ],
)
def test_a_test_file_that_names_no_file_is_seen(test: str, odd: bool) -> None:
    assert names_no_file(Path(test), [Path("pipeline/x/y.py")]) == odd


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


MEDIA_DOOR = Path("pipeline/decode/media.py")
DECORD_DOOR = Path("pipeline/decode/decord_child.py")


def media_openings(source: str, decord_too: bool = True) -> list[int]:
    """Lines that open a media file for reading, or get at the function by another name. Writing one is free."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("av", "decord"):
            found += [node.lineno for alias in node.names if alias.name in ("open", "VideoReader", "*")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("av.open", "av.container.open"):
            modes = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            if [ast.unparse(mode) for mode in modes] != ["'w'"]:
                found.append(node.lineno)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name == "cv2.VideoCapture" or (decord_too and name.startswith("decord.Video")):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("package", DOORS)
def test_media_are_opened_by_one_function(package: str) -> None:
    broken = {
        str(path): lines
        for path in python_files(package)
        if path != MEDIA_DOOR
        and (lines := media_openings((REPOSITORY / path).read_text(), decord_too=path != DECORD_DOOR))
    }
    assert not broken


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import av\nav.open(path)", [2]),
        ("import av\nav.open(path, mode)", [2]),
        ("import av\nav.open(path, mode='r')", [2]),
        ("from av import open", [1]),
        ("import av\nav.container.open(path)", [2]),
        ("import cv2\ncv2.VideoCapture(path)", [2]),
        ("import decord\nread = decord.VideoReader", [2]),
        ("import av\nav.open(file, 'w', format='mp4')", []),
    ],
)
def test_an_opening_of_media_is_seen(source: str, lines: list[int]) -> None:
    assert media_openings(source) == lines


PARQUET_DOOR = Path("pipeline/storage/parquet.py")
READS_COLUMNS = re.compile(
    r"\bpq\.(read_\w+|Parquet(File|Dataset))\b|\bpyarrow\.(dataset|ipc|feather)\b|\bpa\.ipc\.(open|read)_\w+"
    r"|\bfrom pyarrow\.(parquet|dataset|ipc|feather) import\b|\bread_parquet\("
)


@pytest.mark.parametrize("package", DOORS)
def test_parquet_is_read_by_one_module(package: str) -> None:
    """It refuses columns whose values run code."""
    code = {str(path): path.read_text() for path in python_files(package) if path != PARQUET_DOOR}
    broken = {path: READS_COLUMNS.findall(_without_docstrings(text)) for path, text in code.items()}
    assert not {path: found for path, found in broken.items() if found}


def _without_docstrings(source: str) -> str:
    """The code alone: no comments, and of strings only those that are used."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import pyarrow.parquet as pq\npq.read_table(path)", True),
        ("import pyarrow.parquet as pq\npq.ParquetFile(path)", True),
        ("from pyarrow.parquet import read_table", True),
        ("import pyarrow as pa\npa.ipc.open_file(path)", True),
        ("import pyarrow.dataset", True),
        ("data.read_parquet(path)", True),
        ("import pyarrow as pa\npa.ipc.new_file(path, schema)", False),
        ('"""Read with pq.read_table(path)."""', False),
    ],
)
def test_a_reading_of_parquet_is_seen(source: str, seen: bool) -> None:
    assert bool(READS_COLUMNS.search(_without_docstrings(source))) == seen


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
