"""What the pages show works: Python blocks run, commands parse, keys, paths and modules exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from jobs.compare import CompareConfig
from jobs.core.config import describe_keys, load_config
from jobs.demo.command import DemoConfig
from jobs.doctor.command import DoctorConfig
from jobs.duplicates.command import DuplicatesConfig
from jobs.export import ExportConfig
from jobs.inspect import InspectConfig
from jobs.launch import LaunchConfig
from jobs.launch import read_arguments as read_launch_arguments
from jobs.maintain import MaintainConfig
from jobs.plan import CONFIGURATIONS as PLANNED
from jobs.planning.request import PlanRequest, job_config
from jobs.planning.request import read_arguments as read_plan_arguments
from jobs.register import RegisterConfig
from jobs.search import SearchConfig
from jobs.submit.command import SubmitConfig
from jobs.submit.command import read_arguments as read_submit_arguments
from jobs.suggest.command import SuggestConfig
from jobs.sweep.plan import COMMANDS, SweepConfig, plan_children, read_arguments
from jobs.sync import SyncConfig
from jobs.synthetic.motion_videos import render_motion_videos
from tests.support.pages import PAGES, REPOSITORY, blocks, inline_code, read, shell_lines
from tests.support.tag_output import commit

CONFIGURATIONS: dict[str, type] = {
    **COMMANDS,
    "compare": CompareConfig,
    "demo": DemoConfig,
    "doctor": DoctorConfig,
    "duplicates": DuplicatesConfig,
    "export": ExportConfig,
    "inspect": InspectConfig,
    "launch": LaunchConfig,
    "maintain": MaintainConfig,
    "plan": PlanRequest,
    "register": RegisterConfig,
    "search": SearchConfig,
    "submit": SubmitConfig,
    "suggest": SuggestConfig,
    "sweep": SweepConfig,
    "sync": SyncConfig,
}
FLAGS = ("--help", "--print-config", "--dry-run")
# What a shell line may begin with beside `python`; a page that needs another one adds it.
OTHER_PROGRAMS = {
    "make",
    "source",
    "export",
    "ray",
    "mlflow",
    ".venv/bin/mlflow",
    "docker",
    "kubectl",
    "sbatch",
    "promtool",
}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
ROOTS = ("hiera_video", "pipeline", "jobs", "tests", "infra", "docs")
# Look like keys: a placeholder, the key by which a recipe names another, an option of FFmpeg, a word of every command.
NOT_KEYS = {"key", "base", "err_detect", "log"}
NAMED_WITH_FILE = re.compile(r"`([A-Za-z_.]+)`\s(?:\(|in\s)`((?:hiera_video|pipeline|jobs|tests)/[\w/]+\.py)`")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=str)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after the other, in a folder with the tags that a page may read."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        if "build/demo/tag" in block.text:
            commit(str(tmp_path / "build" / "demo" / "tag"), ("file:///videos/a.mp4", "1", "ok"))
        code = compile(block.text, str(page), "exec")
        if block.tested_by is None:
            exec(code, names)
        else:
            assert (REPOSITORY / block.tested_by).exists()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_symbols_are_defined_in_the_file_that_is_named_with_them(page: Path) -> None:
    """ "`Symbol` (`file.py`)" and "`Symbol` in `file.py`"."""
    for symbol, path in NAMED_WITH_FILE.findall(page.read_text()):
        found = re.search(
            rf"^\s*(def |class )?{symbol.rpartition('.')[2]}\b", (REPOSITORY / path).read_text(), re.MULTILINE
        )
        assert found, f"{symbol} is not defined in {path}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_accepted(page: Path) -> None:
    """Every `python -m jobs.NAME ...`, in shell blocks and in tables, as the command itself would read it."""
    shown = [line for line in shell_lines(page) if "jobs." in line]
    shown += [code for code in inline_code(page) if re.match(r"python -m jobs\.[a-z]+ .*=", code)]
    for line in (line.replace("$PWD", "/tmp") for line in shown):
        words = shlex.split(line.partition("-- ")[2] if line.startswith("ray job submit") else line, comments=True)
        assert words[:2] == ["python", "-m"], line
        _accept(words[2].removeprefix("jobs."), [word for word in words[3:] if word not in FLAGS])


def _accept(command: str, arguments: list[str]) -> None:
    arguments = [word for word in arguments if word != "log=json"]  # of every command
    if command == "sweep":
        assert len(plan_children(read_arguments(arguments))) > 1
    elif command == "plan":
        request = read_plan_arguments(arguments)
        job_config(request, PLANNED[request.job])
    elif command in ("launch", "submit"):
        job, *words = {"launch": read_launch_arguments, "submit": read_submit_arguments}[command](arguments).job
        _accept(job, words)
    else:
        load_config(CONFIGURATIONS[command], command, arguments)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_other_shell_lines_name_what_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        while words and ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        assert words[0] == "python" or words[0] in OTHER_PROGRAMS, line
        if words[0] == "make":
            assert words[1] in targets
        if words[:2] == ["python", "-m"]:
            assert exists(words[2]), line
        if words[:2] == ["python", "-c"]:
            for statement in ast.walk(ast.parse(words[2])):
                if isinstance(statement, ast.ImportFrom):
                    assert all(exists(f"{statement.module}.{alias.name}") for alias in statement.names)
        files = [word for word in words if word.startswith(tuple(f"{root}/" for root in ROOTS))]
        assert all((REPOSITORY / file).exists() for file in files), line


def test_make_targets_in_prose_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    targets |= {name for line in re.findall(r"^(test-\S+ .*?):", (REPOSITORY / "Makefile").read_text(), re.M)
                for name in line.split()}  # fmt: skip
    named = {code.split()[1] for page in PAGES for code in inline_code(page) if code.startswith("make ")}
    assert named
    assert named <= targets


@cache
def known_keys() -> frozenset[str]:
    """Every dotted key of every command, and their first parts."""
    keys = {key.key for configuration in CONFIGURATIONS.values() for key in describe_keys(configuration)}
    return frozenset(keys | {key.rpartition(".")[0] for key in keys})


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_keys_exist(page: Path) -> None:
    """Inline code `key=value`, `slice.key` and `key=`; below a table head like `transcode.` its keys without it."""
    unknown = [code for code in inline_code(page) if not _is_known(code)]
    assert not unknown


def _is_known(code: str) -> bool:
    slices = {key.partition(".")[0] for key in known_keys() if "." in key}
    last_parts = {key.rpartition(".")[2] for key in known_keys()}  # a table's head may name the slice
    for word in [] if "(" in code else code.split():
        key, equals, _ = word.partition("=")
        first, dot, _ = key.partition(".")
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key) or first in ("model_overrides", "thresholds"):
            continue
        if dot and (equals or first in slices) and key not in known_keys() and not exists(key):
            return False
        if not dot and equals and key not in last_parts | NOT_KEYS:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_and_modules_exist(page: Path) -> None:
    missing = []
    for code in inline_code(page):
        is_path = re.fullmatch(rf"({'|'.join(ROOTS)})/[\w./*-]*", code)
        if is_path and not re.search(r"[A-Z]{{2,}}|/x/|NAME", code) and not list(REPOSITORY.glob(code.rstrip("/"))):
            missing.append(code)
        is_module = re.fullmatch(r"(hiera_video|pipeline|jobs|tests)(\.\w+)+", code)
        if is_module and "NAME" not in code and not exists(code):
            missing.append(code)
    assert not missing


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module of this project, or a name that one defines; nothing is imported."""
    path = REPOSITORY.joinpath(*name.split("."))
    if name.partition(".")[0] not in ROOTS:
        return False
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    module = path.parent.with_suffix(".py")
    tree = ast.parse(module.read_text()) if module.exists() else ast.Module([], [])
    return path.name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_command_is_in_the_readme() -> None:
    files = {path.stem for path in (REPOSITORY / "jobs").glob("*.py") if "\nif __name__ ==" in path.read_text()}
    commands = files | {path.parent.name for path in (REPOSITORY / "jobs").glob("*/__main__.py")}
    listed = set(re.findall(r"^\| `([a-z]+)` \|", read(Path("README.md")), re.MULTILINE))
    assert commands == listed == set(CONFIGURATIONS)


def test_every_folder_is_in_the_architecture() -> None:
    """And every file beside folders, except for commands."""
    page = read(Path("docs/architecture.md"))
    folders = {path.parent for package in ("hiera_video", "pipeline", "jobs")
               for path in (REPOSITORY / package).glob("*/__init__.py")}  # fmt: skip
    files = {path for package in ("hiera_video", "pipeline") for path in (REPOSITORY / package).glob("[!_]*.py")}
    named = {str(path.relative_to(REPOSITORY)) for path in folders | files}
    assert not {name for name in named if f"`{name}`" not in page}


def test_a_wrong_key_a_wrong_path_and_a_wrong_command_are_seen() -> None:
    assert not _is_known("held_out.clips=3")
    assert not _is_known("validation.clipz")
    assert not _is_known("wurkers=3")
    assert _is_known("validation.clips=3 workers=[1,2]")
    assert not exists("pipeline.storage.filez")
    with pytest.raises(Exception, match="no such key"):
        _accept("pretrain", ["demo", "data=d", "output=o", "held_out.clips=3"])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)  # seven commands, each in a fresh interpreter: two minutes on an idle machine
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """The block under "Commands" as it stands, on a few rendered videos, with the smallest model and few steps."""
    render_motion_videos(tmp_path / "videos", 24, seed=0, size=64, num_frames=16, workers=1)
    tiny = ["view.frame_stride=1", "global_batch=4", "micro_batch=2", "steps=2"]
    tiny += ["workers=1", "validation.clips=0"]
    more = {
        "prepare": ["workers=0"],
        "pretrain": [*tiny, "model=mae_hiera_test_8x64", "mask_ratio=0.75", "picture_clips=1"],
        "finetune": [*tiny, "model=hiera_test_8x64", "new_blocks=0"],
        "evaluate": ["frame_stride=1"],
        "tag": ["gallery_videos=2"],
    }
    for block in blocks(Path("README.md"), "shell"):
        for line in block.text.splitlines():
            words = shlex.split(line.replace("$PWD", str(tmp_path)), comments=True)
            if words[:2] == ["python", "-m"]:
                finished = subprocess.run(
                    [sys.executable, *words[1:], *more.get(words[2].removeprefix("jobs."), [])],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    capture_output=True,
                    text=True,
                    timeout=500,
                    check=False,
                )
                assert finished.returncode == 0, f"{line}\n{finished.stdout[-2000:]}\n{finished.stderr[-2000:]}"
    assert (tmp_path / "runs" / "tags" / "report.html").exists()
    assert (tmp_path / "runs" / "mlflow.db").exists()
