"""Turn a pretrained encoder into a classifier of the labelled clips of a prepared set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hiera_video import (
    AugmentConfig,
    Hiera,
    augment,
    complexity_of,
    create_model,
    load_into_classifier,
    normalize_video,
    sample_uniforms,
    set_activation_checkpointing,
)
from jobs.architecture import architecture
from jobs.batch import Batch
from jobs.dry_run import dry_run_figures
from jobs.errors import UserError
from jobs.held_out import HeldOutConfig
from jobs.initial_weights import link_to_initial_run, local_weights
from jobs.program import run_program
from jobs.train_config import TrainConfig
from jobs.trainer import TrainStep
from jobs.training import close_run, loss_curves, run_training
from pipeline import UNLABELLED, open_prepared

DESCRIPTION = "Fine-tune a pretrained encoder on the labelled clips of a prepared set."


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Classification (paper Tab. 11b)."""

    model: str = "hiera_base_16x224"
    """Preset of the classifier; its number of classes comes from the data."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Changes to the preset: `drop_path_rate`, `head_dropout`, `input_size`, ..."""
    new_blocks: int = 0
    """How many of the encoder's last blocks start anew instead of from `init`: after a short pretraining the last ones
    can be worse than new ones (arXiv 2006.05987, section 4)."""
    label_smoothing: float = 0.1
    """Label smoothing (paper Tab. 11b: 0.1)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    held_out: HeldOutConfig = field(default_factory=lambda: HeldOutConfig(knn_clips=0, best_by="top1"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.startswith("mae_"):
            raise ValueError(
                f"model={self.model}: must be a classifier; did you mean {self.model.removeprefix('mae_')}?"
            )
        self.check_input_size(architecture(self.model, self.model_overrides).input_size)
        depth = sum(architecture(self.model, self.model_overrides).stages)
        if not 0 <= self.new_blocks <= depth:
            raise ValueError(f"new_blocks={self.new_blocks}: the encoder has {depth} blocks; use 0 to {depth}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: must lie in [0, 1); the paper uses 0.1")


class Classification(TrainStep):
    """Augment, classify, compare with the labels."""

    def __init__(self, config: FinetuneConfig, num_classes: int) -> None:
        super().__init__(create_model(config.model, **{"num_classes": num_classes, **config.model_overrides}))
        self._augment, self._smoothing, self._precision = config.augment, config.label_smoothing, config.precision
        set_activation_checkpointing(self.model, config.activation_checkpointing)

    def forward(self, batch: Batch) -> Tensor:
        """Cross entropy, the mean over the labelled views: scalar."""
        model: Hiera = self.model  # type: ignore[assignment]
        flips = sample_uniforms(batch.sample_seeds("flip"), 1)[:, 0]
        pixels = augment(normalize_video(batch.frames), self._augment, flips)
        draws = model.draw(len(batch.sample_ids), batch.generator("drop path"), pixels.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            logits = model(pixels, draws=draws)
        total = functional.cross_entropy(
            logits.float(), batch.labels, label_smoothing=self._smoothing, ignore_index=UNLABELLED, reduction="sum"
        )
        return total / (batch.labels != UNLABELLED).sum().clamp(min=1)  # unlabelled: no view of it could be decoded

    def measure(self, batch: Batch) -> Mapping[str, float]:
        """Cross entropy and whether the highest logit is the label's."""
        with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            logits = self.model(normalize_video(batch.frames)).float()
        loss = functional.cross_entropy(logits, batch.labels)
        return {"loss": float(loss), "top1": float((logits.argmax(1) == batch.labels).float().mean())}

    def multiply_adds(self) -> int | None:
        """See `TrainStep`."""
        return complexity_of(self.model.config).multiply_adds  # type: ignore[arg-type]

    def embed(self, batch: Batch) -> Tensor | None:
        """The features before the head, ``[B, C]``."""
        model: Hiera = self.model  # type: ignore[assignment]
        with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return model.embed(normalize_video(batch.frames))


@dataclass(frozen=True)
class FinetunePhase:
    """How fine-tuning builds its model."""

    config: FinetuneConfig
    num_classes: int
    labelled_only: bool = True

    def build_step(self, *, load_init: bool) -> Classification:
        """See `jobs.trainer.Phase`."""
        step = Classification(self.config, self.num_classes)
        if load_init and self.config.init:
            with local_weights(self.config.init) as path:
                load_into_classifier(step.model, path, new_blocks=self.config.new_blocks)  # type: ignore[arg-type]
        return step


def run(config: FinetuneConfig) -> Mapping[str, Any]:
    """Train, then write weights, journal and curves; returns the report."""
    classes = open_prepared(config.data).classes
    if not classes:
        raise UserError(
            f"data={config.data}: has no classes; prepare it with `annotations` or from a folder of classes"
        )
    links = link_to_initial_run(config.init)
    figures, _, mlflow_run = run_training(
        "finetune", config, _phase(config), links=links, metadata={"classes": json.dumps(classes), **links}
    )
    with TemporaryDirectory() as folder:
        curves = loss_curves(config.output, Path(folder))
        return {**close_run(config, mlflow_run, figures, [curves]), "classes": len(classes)}


def _phase(config: FinetuneConfig) -> FinetunePhase:
    return FinetunePhase(config, len(open_prepared(config.data).classes))


def main() -> None:
    """Entry point of ``python -m jobs.finetune``."""
    run_program(
        "finetune",
        FinetuneConfig,
        run,
        description=DESCRIPTION,
        dry_run=lambda config: dry_run_figures(config, _phase(config)),
    )


if __name__ == "__main__":
    main()
