"""The way from videos or images to tags, once: prepared set, pretraining, fine-tuning, evaluation, tags, comparison."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from jobs.core.cli import Command, echo, print_line, replace
from jobs.core.config import config_yaml
from jobs.demo.config import DemoConfig
from jobs.demo.process_memory import watch_memory
from jobs.demo.report_page import LABELLED, compared_ways, write_page
from jobs.demo.source import check_source, made_folder, make_source
from jobs.demo.stages import FOLDERS, STAGES, missing_labels, run_stage, stage_arguments
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import absolute, join

DESCRIPTION = (
    "Run prepare, pretrain, finetune, evaluate, tag and compare once, on videos or images that the demo makes itself, "
    "or on a folder of your own; fine-tune from scratch, too, with the same settings."
)


def run(config: DemoConfig) -> dict[str, Any]:
    """Render if needed, run every stage, return the figures worth reading."""
    started, output, source = time.monotonic(), absolute(config.output), source_of(config)
    figures: dict[str, Any] = {}
    check_source(config)  # before the last demo's folders are deleted
    clear_if_changed(config)
    with watch_memory() as memory:
        if config.source is None:
            make_source(config, Path(source))
        for stage in STAGES:
            name, begun = stage.name, time.monotonic()
            if stage.scratch and not config.compares:
                continue
            if missing := missing_labels(stage.command.name, output):
                print_line((f"{name} is left out", "yellow"), f": {missing}")
                continue
            report = run_stage(stage.command, stage_arguments(stage, output, source, config.seed, config.media))
            figures[f"{name} seconds"] = round(time.monotonic() - begun, 1)
            figures |= {f"{name} {key}": report[key] for key in stage.repeated.split() if key in report}
    ray.shutdown()
    figures |= {"everything under": output, "minutes": (time.monotonic() - started) / 60}
    return figures | memory.figures() | compared_figures(output)


def source_of(config: DemoConfig) -> str:
    """The folder that is prepared and tagged."""
    return absolute(config.source) if config.source else str(made_folder(config))


def compared_figures(output: str) -> dict[str, Any]:
    """What stands last: how many labels there were, and the accuracy of each way."""
    labelled = open_prepared(join(output, "set")).num_clips("train", labelled_only=True)
    return {LABELLED: labelled} | {f"top-1 {way.name}": way.score["top1"] for way in compared_ways(Path(output))}


def clear_if_changed(config: DemoConfig) -> None:
    """Stages resume; with another configuration than last time the demo's own folders are deleted first.

    Whether two ways are compared changes no stage: it may be added later.
    """
    output = Path(absolute(config.output))
    source = absolute(config.source) if config.source else None
    current = config_yaml(replace(config, source=source, compare=None))
    record = output / "demo.yaml"
    if record.exists() and record.read_text(errors="replace") != current:
        echo(f"output={output}: was made with other keys; its stages start again")
        for folder in FOLDERS:
            shutil.rmtree(output / folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(current)


def draw(config: DemoConfig, report: Mapping[str, Any]) -> dict[str, str]:
    """The page of it all, and the curves."""
    return write_page(config, Path(absolute(config.output)), source_of(config), report)


main = Command("demo", DemoConfig, run, description=DESCRIPTION, draw=draw)
