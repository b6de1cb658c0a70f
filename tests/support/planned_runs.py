"""A training run that was measured, beside what its own journal's plan says."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.core.config import config_yaml, load_config
from jobs.core.yaml_text import parse_yaml
from jobs.plan import planned
from jobs.planning.request import read_arguments
from jobs.training.steps.pretrain import PretrainConfig

DEMO = ("demo", "data=d", "output=o", "tracking.uri=none")


def write_run(folder: Path, lines: Sequence[Mapping[str, Any]], *keys: str) -> Path:
    """The output of a pretraining run of the demo's recipe with this journal."""
    folder.mkdir(parents=True)
    claim = {"run_key": "k", "config": {}, "pins": {"command": "pretrain"}}
    (folder / "run.json").write_text(json.dumps(claim))
    (folder / "config.yaml").write_text(config_yaml(load_config(PretrainConfig, "pretrain", [*DEMO, *keys])))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def planned_seconds(*words: str) -> float:
    """Of a run, by `plan` on cores that train."""
    plan, _ = planned(read_arguments([*words, "gpu=cpu"]))
    return 3600 * plan.hours


def planned_and_taken(output: Path, folder: Path, every: int = 2) -> tuple[float, float]:
    """Seconds of a run that has ended: planned from every second line (``every``) of its journal, and by its clock.

    Not from its first half: what else the machine does changes in minutes.

    The clock's are the median time between two lines, validation left out, times the steps.
    """
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    command = json.loads((output / "run.json").read_text())["pins"]["command"]
    part = folder / "part"
    part.mkdir()
    for name in ("run.json", "config.yaml"):
        shutil.copy(output / name, part / name)
    (part / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[::every]))
    workers = parse_yaml((output / "config.yaml").read_text())["workers"]
    words = (command, str(output / "config.yaml"), f"gpus={workers}", f"measured={part}", "epochs=null")
    between = [
        later["unix_seconds"] - line["unix_seconds"] - later.get("validation", {}).get("seconds", 0.0)
        for line, later in itertools.pairwise(lines)
    ]
    seconds = planned_seconds(*words, f"steps={len(lines)}", "tracking.uri=none")
    return seconds, statistics.median(between) * len(lines)
