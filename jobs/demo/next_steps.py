"""What the demo's page suggests to try next: files to look at, and commands that work as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jobs.demo.config import DemoConfig
from jobs.demo.stages import TRAINING_RECIPE
from jobs.runs.sqlite_uri import sqlite_uri


class NextStep(NamedTuple):
    """A suggestion with a file to open or a command to type."""

    text: str
    path: str = ""
    command: str = ""


def next_steps(config: DemoConfig, output: Path) -> list[NextStep]:
    """Suggestions, as far as the stages that they build on have run."""
    return [*_files(output), *_commands(config, output)]


def _files(output: Path) -> Iterator[NextStep]:
    if (tags := output / "tag" / "report.html").exists():
        yield NextStep("See the tags: labels, failures and a gallery.", path=str(tags))


def _commands(config: DemoConfig, output: Path) -> Iterator[NextStep]:
    recipe, prepared, longer = TRAINING_RECIPE[config.media], output / "set", output / "pretrain_longer"
    yield NextStep(
        f"Do the same with {config.media}s of your own; labels come from an annotations.csv (path,label) among them.",
        command=_line("jobs.demo", f"media={config.media}", f"source=/path/to/{config.media}s", "compare=true",
                      f"output={output}-own"),
    )  # fmt: skip
    yield NextStep(
        "Pretrain for longer, the first thing that a gain needs; fine-tune from it with init=.",
        command=_line("jobs.pretrain", recipe, f"data={prepared}", f"output={longer}", "steps=3000"),
    )
    if (output / "finetune").exists():
        yield NextStep(
            "Three seeds instead of one, before you believe a difference.",
            command=_line("jobs.sweep", "finetune", recipe, f"data={prepared}", f"init={output / 'pretrain'}",
                          f"output={output / 'seeds'}", "seed=[0,1,2]"),
        )  # fmt: skip
    yield NextStep("See what was prepared: counts, sizes, rejections, a contact sheet.",
                   command=_line("jobs.inspect", f"data={prepared}"))  # fmt: skip
    yield NextStep(
        "Browse all runs in MLflow; it prints the address to open.",
        command=shlex.join(["mlflow", "ui", "--backend-store-uri", sqlite_uri(output / "mlflow.db")]),
    )


def _line(module: str, *words: str) -> str:
    return f"python -m {module} {shlex.join(words)}"
