"""The console script, as it lies in a wheel that is installed into an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from jobs import compare, evaluate, export, finetune, inspect, launch, maintain, plan, pretrain, register, sync, tag
from jobs.core.cli import Command
from jobs.core.config import describe_keys, recipe_names
from jobs.demo import command as demo
from jobs.doctor import command as doctor
from jobs.main import COMMANDS, candidates
from jobs.prepare import command as prepare
from jobs.submit import command as submit
from jobs.sweep import command as sweep

REPOSITORY = Path(__file__).resolve().parents[2]
MAINS: tuple[Command[Any], ...] = tuple(
    module.main for module in (
        compare, demo, doctor, evaluate, export, finetune, inspect, launch,
        maintain, plan, prepare, pretrain, register, submit, sweep, sync, tag,
    )
)  # fmt: skip
MOST_KEYS = 50  # of one command, besides those of `--dry-run` alone


def test_every_command_is_a_subcommand() -> None:
    listed = re.findall(r"^\| `([a-z]+)` \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == list(COMMANDS)


@pytest.mark.parametrize("command", MAINS, ids=lambda command: command.name)
def test_a_command_has_few_keys(command: Command[Any]) -> None:
    assert command.name in COMMANDS
    assert len(list(describe_keys(command.config_class))) <= MOST_KEYS


def test_commands_recipes_and_flags_are_completed() -> None:
    assert "pretrain" in candidates([])
    assert "k400_large" in candidates(["pretrain"])
    assert "--dry-run" in candidates(["pretrain", "demo"])
    assert "k400_large" not in candidates(["pretrain", "demo"])


@pytest.mark.parametrize("name", ["prepare", "inspect", "submit", "launch", "compare", "duplicates"])
def test_a_command_without_a_model_starts_without_torch(name: str) -> None:
    script = f"import sys, importlib; importlib.import_module('jobs.{name}'); sys.exit('torch' in sys.modules)"
    if (REPOSITORY / "jobs" / name).is_dir():
        script = script.replace(f"jobs.{name}", f"jobs.{name}.command")
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False, timeout=100).returncode == 0


# What actors load: the classes that Ray carries to them, and what those import. Training workers import these, too, and
# DeepSpeed, whose autotuner imports MLflow by itself.
ACTOR_MODULES = (
    "jobs.training.steps.pretrain", "jobs.training.steps.finetune", "jobs.training.stream", "jobs.training.validation",
    "jobs.supervision.coordinator", "jobs.supervision.process_group", "jobs.runs.node_metrics", "jobs.tagging.stage",
    "jobs.tagging.pipeline", "jobs.scoring.stage", "jobs.scoring.scorers", "pipeline.datasets.train",
    "pipeline.datasets.evaluation", "pipeline.tagging.stages",
)  # fmt: skip


def test_actors_start_without_mlflow() -> None:
    """It takes seconds of CPU in every one of them, and only the driver talks to it."""
    script = f"import sys, {', '.join(ACTOR_MODULES)}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False, timeout=100).returncode == 0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hiera-video` of a new environment that holds the wheel alone, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = folder / "source"  # building leaves files beside what it builds
    for name in ("hiera_video", "pipeline", "jobs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=300)
    venv.create(folder / "environment", with_pip=False)
    (wheel,) = folder.glob("*.whl")
    python = folder / "environment" / "bin" / "python"
    into = ["--python", str(python), "install", "--no-deps", str(wheel)]
    subprocess.run([*pip, *into], check=True, capture_output=True, timeout=300)
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.with_name("hiera-video")


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [program, *words], cwd=program.parent, env=kept, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_wheel_has_commands_recipes_templates_and_class_lists(program: Path) -> None:
    assert "commands: compare" in run(program, "--help").stdout
    wrong = run(program, "pretrian")
    assert (wrong.returncode, wrong.stderr[:26]) == (2, "pretrian: must be one of c")
    packages = next(program.parents[1].glob("lib/python*/site-packages"))
    for pattern in ("jobs/recipes/**/*.yaml", "jobs/reports/templates/*", "pipeline/manifest/class_lists/*"):
        here = {path.relative_to(REPOSITORY) for path in REPOSITORY.glob(pattern)}
        assert here
        assert {path.relative_to(packages) for path in packages.glob(pattern)} == here
    shown = run(program, "pretrain", "k400_large", "data=d", "output=/tmp/o", "--print-config")
    assert shown.returncode == 0, shown.stderr
    assert "model: mae_hiera_large_16x224" in shown.stdout


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_shell_completes_with_the_printed_script(program: Path) -> None:
    script = f"""
    PATH={program.parent}:$PATH
    source <(hiera-video completion)
    COMP_WORDS=(hiera-video pretrain k400_l) COMP_CWORD=2
    _hiera_video
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert finished.stdout.split() == [name for name in recipe_names("pretrain") if name.startswith("k400_l")]
