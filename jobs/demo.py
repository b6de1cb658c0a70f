"""Run every command once: videos, prepared set, pretraining, fine-tuning, evaluation, tags, comparison."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray

from jobs import compare, evaluate, finetune, prepare, pretrain, tag
from jobs.core.cli import console, echo, finish, replace, run_command
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

    config_class: type
    run: Callable[[Any], Mapping[str, Any]]
    arguments: str
    """Recipe and keys; a stage reads what the ones before it wrote."""
    repeated: str = ""
    """What of the command's report the closing report repeats."""

    @property
    def name(self) -> str:
        """The command's name."""
        return self.run.__module__.rpartition(".")[2]


STAGES = (
    Stage(
        prepare.PrepareConfig, prepare.run, "demo source={source} annotations={annotations} output={set} seed={seed}",
        "clips clips_by_split rejected",
    ),
    Stage(
        pretrain.PretrainConfig, pretrain.run, "demo data={set} output={pretrain} seed={seed} tracking.uri={tracking}",
        "first_loss final_loss clips_per_second reconstructions",
    ),
    Stage(
        finetune.FinetuneConfig, finetune.run,
        "demo data={set} init={pretrain} output={finetune} seed={seed} tracking.uri={tracking}",
        "final_loss clips_per_second",
    ),
    Stage(
        evaluate.EvaluateConfig, evaluate.run,
        "demo data={set} init={finetune} output={evaluate} tracking.uri={tracking}",
        "top1 top5 videos_scored confusion",
    ),
    Stage(
        tag.TagConfig, tag.run, "demo source={source} init={finetune} output={tag} tracking.uri={tracking}",
        "videos windows failed_videos report",
    ),
    Stage(compare.CompareConfig, compare.run, "tracking.uri={tracking}"),
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
            missing = missing_labels(stage.name, config)
            if missing:
                console.print(f"[yellow]{stage.name} is left out[/]: {missing}", highlight=False)
            else:
                figures |= run_stage(stage, stage_arguments(stage, config, source))
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


def run_stage(stage: Stage, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one stage as its command would, and print that command."""
    console.rule(stage.name)
    console.print(f"python -m jobs.{stage.name} {shlex.join(arguments)}", style="dim", soft_wrap=True, highlight=False)
    started = time.monotonic()
    config: Any = load_config(stage.config_class, stage.name, arguments)
    report = stage.run(config)
    finish(stage.name, config, report)
    seconds = round(time.monotonic() - started, 1)
    repeated = {f"{stage.name} {key}": report[key] for key in stage.repeated.split() if key in report}
    return {f"{stage.name} seconds": seconds, **repeated}


def main() -> None:
    """Entry point of ``python -m jobs.demo``."""
    run_command("demo", DemoConfig, run, description=DESCRIPTION)


if __name__ == "__main__":
    main()
