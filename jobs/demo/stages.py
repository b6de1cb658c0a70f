"""The stages of the demo: each command, its arguments, and what it cannot do without."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jobs import compare, evaluate, finetune, pretrain, tag
from jobs.core.cli import Command, heading, print_line, run_and_report
from jobs.core.config import load_config
from jobs.core.events import bound
from jobs.core.text import shown
from jobs.prepare import command as prepare
from jobs.runs.sqlite_uri import sqlite_uri
from pipeline.media import Media
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import exists, join

LABELS_FILE = "annotations.csv"
NEED_LABELS = ("finetune", "evaluate", "tag")
# By kind of media: the recipe of pretraining and fine-tuning, and that of evaluation.
TRAINING_RECIPE: dict[Media, str] = {"video": "demo", "image": "demo_images"}
EVALUATION_RECIPE: dict[Media, str] = {"video": "demo", "image": "in1k"}
FOLDERS = ("set", "pretrain", "finetune", "evaluate", "finetune_scratch", "evaluate_scratch", "tag")


class Stage(NamedTuple):
    """One command with the arguments that the demo gives it."""

    command: Command[Any]
    arguments: str
    """Recipe and keys; a stage reads what the ones before it wrote."""
    repeated: str = ""
    """What of the command's report the closing report repeats."""
    scratch: bool = False
    """Whether it belongs to the run without pretraining, which is there to be compared with."""

    @property
    def name(self) -> str:
        """The command, and which of the two runs of it this is."""
        return f"{self.command.name} from scratch" if self.scratch else self.command.name


STAGES = (
    Stage(
        prepare.main, "demo media={media} source={source} annotations={annotations} output={set} seed={seed}",
        "clips clips_by_split rejected",
    ),
    Stage(
        pretrain.main, "{training} data={set} output={pretrain} seed={seed} tracking.uri={tracking}",
        "first_loss final_loss clips_per_second reconstructions",
    ),
    Stage(
        finetune.main, "{training} data={set} init={pretrain} output={finetune} seed={seed} tracking.uri={tracking}",
        "final_loss clips_per_second",
    ),
    Stage(
        evaluate.main, "{evaluation} data={set} init={finetune} output={evaluate} tracking.uri={tracking}",
        "top1 top5 videos_scored images_scored confusion",
    ),
    Stage(
        finetune.main, "{training} data={set} output={finetune_scratch} seed={seed} tracking.uri={tracking}",
        "final_loss clips_per_second", scratch=True,
    ),
    Stage(
        evaluate.main,
        "{evaluation} data={set} init={finetune_scratch} output={evaluate_scratch} tracking.uri={tracking}",
        "top1 top5 confusion", scratch=True,
    ),
    Stage(
        tag.main, "demo source={source} init={finetune} output={tag} tracking.uri={tracking}",
        "videos windows failed_videos animations report",
    ),
    Stage(compare.main, "tracking.uri={tracking}"),
)  # fmt: skip


def missing_labels(stage: str, output: str) -> str | None:
    """Why a stage cannot run on the demo's set; None: it can."""
    if stage not in NEED_LABELS:
        return None
    prepared = open_prepared(join(output, "set"))
    if not prepared.num_clips("train", labelled_only=True):
        return f"no labelled {prepared.media}; put them in class folders, or a {LABELS_FILE} (path,label) beside them"
    if stage == "evaluate" and not prepared.num_clips("val", labelled_only=True):
        return f"no labelled {prepared.media} is in the val split; label more of them"
    return None


def stage_arguments(stage: Stage, output: str, source: str, seed: int, media: Media = "video") -> list[str]:
    """A stage's arguments as on the command line; all paths are absolute."""
    labels = join(source, LABELS_FILE)
    values = {
        "media": media,
        "training": TRAINING_RECIPE[media],
        "evaluation": EVALUATION_RECIPE[media],
        "source": source,
        "annotations": labels if exists(labels) else "null",
        "seed": seed,
        "tracking": sqlite_uri(f"{output}/mlflow.db"),
        **{folder: join(output, folder) for folder in FOLDERS},
    }
    return [word.format(**values) for word in stage.arguments.split()]  # split first: paths may hold spaces


def command_line(command: Command[Any], arguments: Sequence[str]) -> str:
    """The stage as one types it."""
    return f"python -m jobs.{command.name} {shlex.join(arguments)}"


def run_stage(command: Command[Any], arguments: Sequence[str]) -> Mapping[str, Any]:
    """Run one stage as its command would, and print that command; returns its report."""
    heading(command.name)
    print_line((shown(command_line(command, arguments)), "dim"))
    config = load_config(command.config_class, command.name, arguments)
    with bound(command.name):
        return run_and_report(command, config)
