"""The way from videos or images to tags, once: prepared set, pretraining, fine-tuning, evaluation, tags, comparison."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from jobs.core.cli import Command, bars_are_drawn, echo, heading, print_line, replace
from jobs.core.config import config_yaml
from jobs.core.errors import UserError
from jobs.demo.process_memory import watch_memory
from jobs.demo.stages import FOLDERS, LABELS_FILE, STAGES, missing_labels, run_stage, stage_arguments
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.synthetic.scene_images import cut_scene_images
from pipeline.media import Media
from pipeline.storage.files import absolute
from pipeline.tagging.source import list_source

DESCRIPTION = (
    "Run prepare, pretrain, finetune, evaluate, tag and compare once, on videos or images that the demo makes itself, "
    "or on a folder of your own."
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's few keys; each stage runs its own `demo` recipe."""

    media: Media = "video"
    """Videos, or images: the same commands on either."""
    source: str | None = None
    """Folder of your own videos or images; an `annotations.csv` (columns path, label) in it gives the labels. Default:
    labelled videos of eight motions, which the demo renders, or labelled pieces of two photographs."""
    output: str = "build/demo"
    """Every stage writes its own folder below."""
    videos: int = 800
    """How many videos, or images, to make."""
    difficulty: float = 0.0
    """Appearance of the rendered videos, 0 (bright shapes on a calm background) to 1 (textures everywhere)."""
    seed: int = 0
    """Decides the rendered videos and every random draw."""

    def __post_init__(self) -> None:
        if self.videos < 80:
            raise ValueError(f"videos={self.videos}: must be at least 80, for eight classes; use 800")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty}: must lie in [0, 1]; use 0 for the easiest")


def run(config: DemoConfig) -> dict[str, Any]:
    """Render if needed, run every stage, return the figures worth reading."""
    started, output = time.monotonic(), absolute(config.output)
    figures: dict[str, Any] = {}
    check_source(config)  # before the last demo's folders are deleted
    clear_if_changed(config)
    with watch_memory() as memory:
        source = absolute(config.source) if config.source else rendered(config)
        for stage in STAGES:
            name, begun = stage.command.name, time.monotonic()
            if missing := missing_labels(name, output):
                print_line((f"{name} is left out", "yellow"), f": {missing}")
                continue
            report = run_stage(stage.command, stage_arguments(stage, output, source, config.seed, config.media))
            figures[f"{name} seconds"] = round(time.monotonic() - begun, 1)
            figures |= {f"{name} {key}": report[key] for key in stage.repeated.split() if key in report}
    ray.shutdown()
    figures |= {"everything under": output, "minutes": (time.monotonic() - started) / 60}
    return figures | memory.figures()


def check_source(config: DemoConfig) -> None:
    """Refuse a source of one's own that holds nothing of the kind."""
    if config.source and len(list_source(config.source, config.media).videos) == 0:
        raise UserError(f"source={config.source}: holds no {config.media}; give a folder or prefix of {config.media}s")


def clear_if_changed(config: DemoConfig) -> None:
    """Stages resume; with another configuration than last time the demo's own folders are deleted first."""
    output = Path(absolute(config.output))
    current = config_yaml(replace(config, source=absolute(config.source) if config.source else None))
    record = output / "demo.yaml"
    if record.exists() and record.read_text(errors="replace") != current:
        echo(f"output={output}: was made with other keys; its stages start again")
        for folder in FOLDERS:
            shutil.rmtree(output / folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(current)


def rendered(config: DemoConfig) -> str:
    """A folder of made videos or images, one folder per class; an existing one of the same keys is used again."""
    folder = Path(absolute(config.output)) / f"{config.media}s-{config.videos}-{config.difficulty:g}-{config.seed}"
    if (folder / LABELS_FILE).exists():  # written last
        return str(folder)
    heading("render")
    if config.media == "image":
        cut_scene_images(folder, config.videos, config.seed, annotations=LABELS_FILE)
    else:
        render_motion_videos(
            folder, config.videos, config.seed, config.difficulty, progress=bars_are_drawn(), annotations=True
        )
    return str(folder)


main = Command("demo", DemoConfig, run, description=DESCRIPTION)
