"""The whole way once: videos, prepared set, pretraining, fine-tuning, evaluation, tags, comparison."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from jobs import compare, evaluate, finetune, prepare, pretrain, tag
from jobs.core.cli import console, echo, finish, replace, run_command
from jobs.core.config import config_yaml, load_config
from jobs.core.errors import UserError
from jobs.core.process_memory import watch_memory
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.training.finetune_step import FinetuneConfig
from jobs.training.pretrain_step import PretrainConfig
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import absolute, exists, join
from pipeline.tagging.source import list_source

DESCRIPTION = (
    "Run every command once, on videos that the demo renders itself or on a folder of your own: "
    "prepare, pretrain, finetune, evaluate, tag, compare."
)
CLASS_HINT = "annotations.csv"
NEED_LABELS = ("finetune", "evaluate", "tag")
STAGES = ("set", "pretrain", "finetune", "evaluate", "tag")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's few dials; each stage runs its own `demo` recipe."""

    source: str | None = None
    """Folder of your own videos; with an `annotations.csv` (columns path, label) in it, labels come from there. By
    default the demo renders labelled videos of eight motions."""
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
            raise ValueError(f"videos={self.videos}: eight classes need at least 80; use 800")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty}: must lie in [0, 1]; use 0 for the easiest")


@dataclass(frozen=True)
class Stage:
    """One command with its recipe and the keys that the demo sets."""

    name: str
    config_class: type
    run: Callable[[Any], Mapping[str, Any]]
    keys: dict[str, str]
    recipe: str | None = "demo"

    @property
    def arguments(self) -> list[str]:
        """As on the command line."""
        return [*([self.recipe] if self.recipe else []), *(f"{key}={value}" for key, value in self.keys.items())]


def run(config: DemoConfig) -> dict[str, Any]:
    """Render if needed, run every stage, return the figures worth reading."""
    started = time.monotonic()
    figures: dict[str, Any] = {}
    if config.source:
        _refuse_no_videos(config.source)
    _start_afresh_if_changed(config)
    with watch_memory() as memory:
        source = absolute(config.source) if config.source else _rendered(config)
        for stage in _stages(config, source):
            missing = _missing_labels(stage, config)
            if missing:
                console.print(f"[yellow]{stage.name} is left out[/]: {missing}", highlight=False)
            else:
                figures |= _run_stage(stage)
    ray.shutdown()
    return {
        **figures,
        "everything under": absolute(config.output),
        "minutes": (time.monotonic() - started) / 60,
        "peak memory of all processes, GiB": memory.gib,
    }


def _refuse_no_videos(source: str) -> None:
    """Before a finished demo makes capacity for another."""
    if len(list_source(source).videos) == 0:
        raise UserError(f"source={source}: holds no video; give a folder or prefix of videos")


def _missing_labels(stage: Stage, config: DemoConfig) -> str | None:
    """Why a stage that needs labels cannot run on this set; None: it can."""
    if stage.name not in NEED_LABELS:
        return None
    prepared = open_prepared(join(absolute(config.output), "set"))
    if not prepared.num_clips("train", labelled_only=True):
        return f"no labelled video; put them in class folders, or a {CLASS_HINT} (path,label) beside them"
    if stage.name == "evaluate" and not prepared.num_clips("val", labelled_only=True):
        return "no labelled video fell into the held-out split; label more of them"
    return None


def _start_afresh_if_changed(config: DemoConfig) -> None:
    """Stages resume; with other videos or dials than last time the demo's own folders make capacity."""
    output = Path(absolute(config.output))
    dials = config_yaml(replace(config, source=absolute(config.source) if config.source else None))
    record = output / "demo.yaml"
    if record.exists() and record.read_text() != dials:
        echo(f"other videos or dials than last time: {output} starts afresh")
        for stage in STAGES:
            shutil.rmtree(output / stage, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(dials)


def _rendered(config: DemoConfig) -> str:
    """A folder of rendered videos, one folder a class; made again only when the dials changed."""
    name = f"videos-{config.videos}-{config.difficulty:g}-{config.seed}"
    folder = Path(absolute(config.output)) / name
    if not (folder / CLASS_HINT).exists():
        console.rule("render")
        render_motion_videos(folder, config.videos, config.seed, config.difficulty, progress=True, annotations=True)
    return str(folder)


def _stages(config: DemoConfig, source: str) -> list[Stage]:
    place = {name: join(absolute(config.output), name) for name in STAGES}
    annotations = join(source, CLASS_HINT)
    labels = {"annotations": annotations} if exists(annotations) else {}
    seed, tracking = {"seed": str(config.seed)}, {"tracking.uri": f"sqlite:///{absolute(config.output)}/mlflow.db"}
    classifier = {"init": place["finetune"], **tracking}
    return [
        Stage(
            "prepare", prepare.PrepareConfig, prepare.run, {"source": source, "output": place["set"], **labels, **seed}
        ),
        Stage(
            "pretrain",
            PretrainConfig,
            pretrain.run,
            {"data": place["set"], "output": place["pretrain"], **seed, **tracking},
        ),
        Stage(
            "finetune",
            FinetuneConfig,
            finetune.run,
            {"data": place["set"], "init": place["pretrain"], "output": place["finetune"], **seed, **tracking},
        ),
        Stage(
            "evaluate",
            evaluate.EvaluateConfig,
            evaluate.run,
            {"data": place["set"], "output": place["evaluate"], **classifier},
        ),
        Stage("tag", tag.TagConfig, tag.run, {"source": source, "output": place["tag"], **classifier}),
        Stage("compare", compare.CompareConfig, compare.run, tracking, recipe=None),
    ]


def _run_stage(stage: Stage) -> dict[str, Any]:
    """Run one stage as a command of its own, and print that command."""
    console.rule(stage.name)
    console.print(
        f"python -m jobs.{stage.name} {' '.join(stage.arguments)}", style="dim", soft_wrap=True, highlight=False
    )
    started = time.monotonic()
    config: Any = load_config(stage.config_class, stage.name, stage.arguments)
    report = stage.run(config)
    finish(stage.name, config, report)
    seconds = time.monotonic() - started
    worth = {key: report[key] for key in WORTH_READING.get(stage.name, ()) if key in report}
    return {
        f"{stage.name} seconds": round(seconds, 1),
        **{f"{stage.name} {key}": value for key, value in worth.items()},
    }


WORTH_READING = {
    "prepare": ("clips", "clips_by_split", "rejected"),
    "pretrain": ("first_loss", "final_loss", "clips_per_second", "reconstructions"),
    "finetune": ("final_loss", "clips_per_second"),
    "evaluate": ("top1", "top5", "videos_scored", "confusion"),
    "tag": ("videos", "windows", "failed_videos", "report"),
}


def main() -> None:
    """Entry point of ``python -m jobs.demo``."""
    run_command("demo", DemoConfig, run, description=DESCRIPTION)


if __name__ == "__main__":
    main()
