"""A training run as its workers get it, and the plan that turns epochs into steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobs.core.cli import echo
from jobs.core.errors import UserError
from jobs.runs.tracking_config import unrecorded
from jobs.training.config import KNN_TOP1, LOSS, TrainConfig, ValidationConfig
from jobs.training.steps.step import TrainStep
from pipeline.shards.reader import PreparedSet


class Phase(Protocol):
    """What pretraining and fine-tuning do not share. Instances travel to the workers, so they stay small."""

    @property
    def config(self) -> TrainConfig:
        """What it was made of, with an `init` that workers can read."""

    @property
    def labelled_only(self) -> bool:
        """Whether the stream leaves unlabelled clips out."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Facts to keep inside the weights file, besides run id and command."""

    def build_step(self, *, load_init: bool) -> TrainStep[Any]:
        """The model, filled from the configured weights if wanted, inside the module that computes its loss.

        Raises:
            ValueError: the configuration or the weights do not fit.
        """

    def pictures(self, model: Any, prepared: PreparedSet, folder: Path) -> list[Path]:
        """Draw what shall be kept of the trained model (on the CPU) into a folder."""


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs; picklable."""

    command: str
    run_key: str
    config: TrainConfig
    phase: Phase
    prepared: PreparedSet
    total_steps: int
    warmup_steps: int
    steps_between_measurements: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch."""
        return self.config.global_batch // self.config.micro_batch


@dataclass(frozen=True)
class WorkerResult:
    """How a rank's loop ended."""

    step: int
    """Optimizer steps that are saved."""
    stopped: bool = False
    """Whether it was asked to stop (SIGTERM to the driver, or the notice that its host is taken away)."""
    failure: str = ""
    """Why training cannot continue, if it cannot; replacing the workers would not help."""


def plan_job(command: str, run_key: str, config: TrainConfig, phase: Phase, prepared: PreparedSet) -> TrainingJob:
    """Turn effective epochs, of one view per clip each, into steps.

    Raises:
        UserError: the set holds no clip to train on, or not what validation needs.
    """
    clips = prepared.num_clips("train", labelled_only=phase.labelled_only)
    if clips == 0:
        wanted = "labelled training clips" if phase.labelled_only else "training clips"
        raise UserError(f"data={config.data}: holds no {wanted}; `python -m jobs.inspect data={config.data}` shows it")
    check_validation(config.validation, prepared, phase.labelled_only)
    steps_per_epoch = clips / config.global_batch
    total = config.steps or max(1, math.ceil((config.epochs or 0) * steps_per_epoch))
    warmup = min(total, round(config.schedule.warmup_epochs * steps_per_epoch))
    if warmup == total:
        echo(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g}: the warm-up takes all {total} steps, so the "
            "learning rate never falls; give fewer epochs of it, or more steps",
            warning=True,
        )
    return TrainingJob(
        command=command,
        run_key=run_key,
        # Only the driver talks to MLflow: workers, and what Ray shows of a job, need no tracking URI or credentials.
        config=unrecorded(config),
        phase=phase,
        prepared=prepared,
        total_steps=total,
        warmup_steps=warmup,
        steps_between_measurements=config.validation.steps_between(steps_per_epoch),
    )


def check_validation(config: ValidationConfig, prepared: PreparedSet, labelled_only: bool) -> None:
    """Warn of what a set cannot be measured on.

    Raises:
        UserError: what was requested by name does not exist.
    """
    if not config.clips:
        return
    if prepared.num_clips(config.split, labelled_only) == 0:
        echo(
            f"data={prepared.uri} has no validation clips (split {config.split}; it has {prepared.splits()}): "
            "nothing is measured, and no checkpoint is the best; see val_share of prepare",
            warning=True,
        )
        return
    voters = min(prepared.num_clips(split, labelled_only=True) for split in ("train", config.split))
    if config.best_by == KNN_TOP1 and not (config.knn_clips and voters):
        raise UserError(
            f"validation.best_by={KNN_TOP1}: needs labelled training and validation clips, and validation.knn_clips="
            f"{config.knn_clips} above 0; use {LOSS}"
        )
