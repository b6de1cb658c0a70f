"""Run every command once: videos, prepared set, pretraining, fine-tuning, evaluation, tags, comparison."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray

from jobs import compare, evaluate, finetune, prepare, pretrain, tag
from jobs.core.cli import Command, console, echo, finish, replace
from jobs.core.config import config_yaml, load_config
from jobs.core.errors import UserError
from jobs.core.process_memory import watch_memory
from jobs.runs.mlflow_sender import sqlite_uri
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import absolute, exists, join
from pipeline.tagging.source import list_source

DESCRIPTION = (
    "Run every command once, on videos that the demo renders itself or on a folder of your own: "
    "prepare, pretrain, finetune, evaluate, tag, compare."
)
LABELS_FILE = "annotations.csv"
NEED_LABELS = ("finetune", "evaluate", "tag")
FOLDERS = ("set", "pretrain", "finetune", "evaluate", "tag")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's few keys; each stage runs its own `demo` recipe."""

    source: str | None = None
    """Folder of your own videos; an `annotations.csv` (columns path, label) in it gives the labels. Default: labelled
    videos of eight motions, which the demo renders."""
    output: str = "build/demo"
    """Every stage writes its own folder below."""
    videos: int = 800
    """How many videos to render."""
    difficulty: float = 0.0
    """Appearance of the rendered videos, 0 (bright shapes on a calm background) to 1 (textures everywhere)."""
    seed: int = 0
    """Decides the rendered videos and every random draw."""

    def __post_init__(self) -> None:
        if self.videos < 80:
            raise ValueError(f"videos={self.videos}: must be at least 80, for eight classes; use 800")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty}: must lie in [0, 1]; use 0 for the easiest")


class Stage(NamedTuple):
    """One command with the arguments that the demo gives it."""

    command: Command[Any]
    arguments: str
    """Recipe and keys; a stage reads what the ones before it wrote."""
    repeated: str = ""
    """What of the command's report the closing report repeats."""


STAGES = (
    Stage(
        prepare.main, "demo source={source} annotations={annotations} output={set} seed={seed}",
        "clips clips_by_split rejected",
    ),
    Stage(
        pretrain.main, "demo data={set} output={pretrain} seed={seed} tracking.uri={tracking}",
        "first_loss final_loss clips_per_second reconstructions",
    ),
    Stage(
        finetune.main, "demo data={set} init={pretrain} output={finetune} seed={seed} tracking.uri={tracking}",
        "final_loss clips_per_second",
    ),
    Stage(
        evaluate.main, "demo data={set} init={finetune} output={evaluate} tracking.uri={tracking}",
        "top1 top5 videos_scored confusion",
    ),
    Stage(
        tag.main, "demo source={source} init={finetune} output={tag} tracking.uri={tracking}",
        "videos windows failed_videos report",
    ),
    Stage(compare.main, "tracking.uri={tracking}"),
)  # fmt: skip


def run(config: DemoConfig) -> dict[str, Any]:
    """Render if needed, run every stage, return the figures worth reading."""
    started = time.monotonic()
    figures: dict[str, Any] = {}
    if config.source and len(list_source(config.source).videos) == 0:  # before the last demo's folders are deleted
        raise UserError(f"source={config.source}: holds no video; give a folder or prefix of videos")
    clear_if_changed(config)
    with watch_memory() as memory:
        source = absolute(config.source) if config.source else rendered(config)
        for stage in STAGES:
            name, begun = stage.command.name, time.monotonic()
            if missing := missing_labels(name, config):
                console.print(f"[yellow]{name} is left out[/]: {missing}", highlight=False)
                continue
            report = run_stage(stage.command, stage_arguments(stage, config, source))
            figures[f"{name} seconds"] = round(time.monotonic() - begun, 1)
            figures |= {f"{name} {key}": report[key] for key in stage.repeated.split() if key in report}
    ray.shutdown()
    figures |= {"everything under": absolute(config.output), "minutes": (time.monotonic() - started) / 60}
    return figures | memory.figures()


def clear_if_changed(config: DemoConfig) -> None:
    """Stages resume; with another configuration than last time the demo's own folders are deleted first."""
    output = Path(absolute(config.output))
    current = config_yaml(replace(config, source=absolute(config.source) if config.source else None))
    record = output / "demo.yaml"
    if record.exists() and record.read_text() != current:
        echo(f"output={output}: was made with other keys; its stages start again")
        for folder in FOLDERS:
            shutil.rmtree(output / folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(current)


def rendered(config: DemoConfig) -> str:
    """A folder of rendered videos, one folder per class; an existing one of the same keys is used again."""
    folder = Path(absolute(config.output)) / f"videos-{config.videos}-{config.difficulty:g}-{config.seed}"
    if not (folder / LABELS_FILE).exists():  # written last
        console.rule("render")
        render_motion_videos(folder, config.videos, config.seed, config.difficulty, progress=True, annotations=True)
    return str(folder)


def missing_labels(stage: str, config: DemoConfig) -> str | None:
    """Why a stage cannot run on this set; None: it can."""
    if stage not in NEED_LABELS:
        return None
    prepared = open_prepared(join(absolute(config.output), "set"))
    if not prepared.num_clips("train", labelled_only=True):
        return f"no labelled video; put them in class folders, or a {LABELS_FILE} (path,label) beside them"
    if stage == "evaluate" and not prepared.num_clips("val", labelled_only=True):
        return "no labelled video is in the val split; label more of them"
    return None


def stage_arguments(stage: Stage, config: DemoConfig, source: str) -> list[str]:
    """A stage's arguments as on the command line."""
    output, labels = absolute(config.output), join(source, LABELS_FILE)
    values = {
        "source": source,
        "annotations": labels if exists(labels) else "null",
        "seed": config.seed,
        "tracking": sqlite_uri(f"{output}/mlflow.db"),
        **{folder: join(output, folder) for folder in FOLDERS},
    }
    return [word.format(**values) for word in stage.arguments.split()]  # split first: paths may hold spaces


def run_stage(command: Command[Any], arguments: Sequence[str]) -> Mapping[str, Any]:
    """Run one stage as its command would, and print that command; returns its report."""
    console.rule(command.name)
    words = f"python -m jobs.{command.name} {shlex.join(arguments)}"
    console.print(words, style="dim", soft_wrap=True, highlight=False)
    config = load_config(command.config_class, command.name, arguments)
    report = command.run(config)
    finish(command.name, config, report)
    return report


main = Command("demo", DemoConfig, run, description=DESCRIPTION)


if __name__ == "__main__":
    main()
