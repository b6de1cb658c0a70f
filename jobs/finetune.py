"""Turn a pretrained encoder into a classifier of the labelled clips of a prepared set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.analysis.flops import complexity_of
from hiera_video.augmentation.basic import ClassifierAugmentConfig, augment, normalize_video, random_erase
from hiera_video.augmentation.mixup import (
    MixConfig,
    draw_mix,
    mix_pixels,
    mix_targets,
    soft_cross_entropy,
    soft_targets,
)
from hiera_video.augmentation.rand_augment import parse_rand_augment, rand_augment
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import create_model, set_activation_checkpointing
from hiera_video.models.random_draws import sample_uniforms
from hiera_video.weights.checkpoint_files import load_into_classifier, read_weights
from jobs.core.cli import echo, replace, run_command
from jobs.core.errors import UserError
from jobs.core.init_source import (
    ENCODER,
    SAMPLING,
    SHIPPED_CLASSES,
    initial_metadata,
    local_weights,
)
from jobs.runs.claim import pins_of
from jobs.runs.tracking import unrecorded
from jobs.training.config import TrainConfig
from jobs.training.driver import (
    claimed_set,
    initial_links,
    loss_curves,
    run_training,
    with_absolute_paths,
    with_initial_file,
)
from jobs.training.dry_run import PlanConfig, dry_run_figures
from jobs.training.loop import TrainStep
from jobs.training.mfu import BACKWARD_AND_FORWARD
from jobs.training.micro_batch import MicroBatch
from jobs.weights.model_config import architecture
from jobs.weights.registry import initial_file
from pipeline.manifest.formats import read_class_list
from pipeline.shards.reader import PreparedSet

NEW_HEAD = "new_head"  # pin of a run
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
    learn: Literal["all", "norm_and_head", "head"] = "all"
    """What learns: everything; what comes after the encoder, which stays as `init` has it (frozen encoder); or the
    linear head alone, on features that stay the same (linear probe)."""
    label_smoothing: float = 0.1
    """Label smoothing (paper Tab. 11b: 0.1)."""
    augment: ClassifierAugmentConfig = field(default_factory=ClassifierAugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.startswith("mae_"):
            raise ValueError(
                f"model={self.model}: must be a classifier; did you mean {self.model.removeprefix('mae_')}?"
            )
        if "num_classes" in self.model_overrides:
            raise ValueError(
                f"model_overrides.num_classes={self.model_overrides['num_classes']}: comes from the data's class list; "
                "drop it"
            )
        self.check_input_size()
        depth = sum(architecture(self.model, self.model_overrides).stages)
        if not 0 <= self.new_blocks <= depth:
            raise ValueError(f"new_blocks={self.new_blocks}: the encoder has {depth} blocks; use 0 to {depth}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: must lie in [0, 1); the paper uses 0.1")
        if self.mix.on and self.micro_batch < 2:
            raise ValueError(
                f"micro_batch={self.micro_batch}: mixup and cutmix mix the views of a micro-batch with each other; use "
                "2 or more, or mix.mixup=0 mix.cutmix=0"
            )
        if self.learn != "all" and (self.init is None or self.new_blocks):
            raise ValueError(
                f"learn={self.learn}: leaves the encoder as init has it (init={self.init}, "
                f"new_blocks={self.new_blocks}); give init=RUN_OUTPUT new_blocks=0, or use learn=all"
            )

    @property
    def input_size(self) -> tuple[int, ...]:
        """See `TrainConfig`."""
        return architecture(self.model, self.model_overrides).input_size


class Classification(TrainStep):
    """Augment, mix, classify, compare with the labels."""

    def __init__(self, config: FinetuneConfig, num_classes: int) -> None:
        super().__init__(create_model(config.model, **{"num_classes": num_classes, **config.model_overrides}))
        self._config = config
        self._policy = parse_rand_augment(config.augment.rand_augment) if config.augment.rand_augment else None
        set_activation_checkpointing(self.model, config.activation_checkpointing)
        learning: dict[str, tuple[str, ...]] = {"all": ("",), "norm_and_head": ("norm.", "head."), "head": ("head.",)}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(learning[config.learn]))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """An encoder that does not learn drops no path: its features stay the same."""
        super().train(mode)
        model: Hiera = self.model  # type: ignore[assignment]
        model.encoder.train(mode and self._config.learn == "all")
        return self

    def forward(self, batch: MicroBatch) -> Tensor:
        """Cross entropy with soft targets, the mean over the labelled views: scalar."""
        model: Hiera = self.model  # type: ignore[assignment]
        pixels = self._augmented(batch)
        # Without a label: no view of the micro-batch could be decoded.
        targets = soft_targets(batch.labels, model.config.num_classes, self._config.label_smoothing)
        height, width = pixels.shape[-2:]
        mix = draw_mix(self._config.mix, len(pixels), height, width, batch.generator("mix"))
        draws = model.draw(len(batch.sample_ids), batch.generator("drop path"), pixels.device)
        with self._autocast(batch):
            logits = model(mix_pixels(pixels, mix), draws=draws)
        return soft_cross_entropy(logits, mix_targets(targets, mix))

    def _augmented(self, batch: MicroBatch) -> Tensor:
        """Normalised pixels ``[B, 3, T, H, W]``, changed by each sample's own draws."""
        frames, config = batch.frames, self._config.augment
        if self._policy is not None:
            noise = sample_uniforms(batch.sample_seeds("rand augment"), self._policy.draws)
            frames = rand_augment(frames, self._policy, noise)
        flips = sample_uniforms(batch.sample_seeds("flip"), 1)[:, 0]
        pixels = augment(normalize_video(frames), config, flips)
        return random_erase(pixels, config.random_erasing, batch.sample_seeds("erasing"))

    def _autocast(self, batch: MicroBatch) -> torch.autocast:
        return torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=self._config.precision == "bf16")

    def measure(self, batch: MicroBatch) -> Mapping[str, float]:
        """Cross entropy and whether the highest logit is the label's."""
        with self._autocast(batch):
            logits = self.model(normalize_video(batch.frames)).float()
        loss = functional.cross_entropy(logits, batch.labels)
        return {"loss": float(loss), "top1": float((logits.argmax(1) == batch.labels).float().mean())}

    def multiply_adds(self) -> int | None:
        """See `TrainStep`."""
        forward = complexity_of(self.model.config).multiply_adds  # type: ignore[arg-type]
        return BACKWARD_AND_FORWARD * forward if self._config.learn == "all" else forward

    def embed(self, batch: MicroBatch) -> Tensor | None:
        """The features before the head, ``[B, C]``."""
        model: Hiera = self.model  # type: ignore[assignment]
        with self._autocast(batch):
            return model.embed(normalize_video(batch.frames))


@dataclass(frozen=True)
class FinetunePhase:
    """How fine-tuning builds its model."""

    config: FinetuneConfig
    num_classes: int
    new_head: bool = False
    """Whether the head stays new: `init` has none, or one for other classes, or does not say for which."""
    labelled_only: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", unrecorded(self.config))

    def build_step(self, *, load_init: bool) -> Classification:
        """See `jobs.training.loop.Phase`."""
        step = Classification(self.config, self.num_classes)
        if load_init and self.config.init:
            with local_weights(self.config.init) as path:
                model: Hiera = step.model  # type: ignore[assignment]
                load_into_classifier(model, path, new_blocks=self.config.new_blocks, new_head=self.new_head)
        return step


def run(config: FinetuneConfig) -> Mapping[str, Any]:
    """Train, then write weights, journal and curves; returns the report."""
    config = with_absolute_paths(config)
    prepared = claimed_set(config)
    if not prepared.classes:
        raise UserError(
            f"data={config.data}: has no classes; prepare it with `annotations` or from a folder of classes"
        )
    empty = warn_empty_classes(prepared)
    located = with_initial_file(config)
    links, phase = initial_links(config.output, located.init), _phase(located)
    if phase.new_head and config.init:
        echo_new_head(config.init, phase.num_classes)
    sampling = {"sampling": config.view.sampling, "frame_stride": config.view.frame_stride}
    report = run_training(
        "finetune",
        config,
        phase,
        links=links,
        metadata={"classes": json.dumps(prepared.classes), SAMPLING: json.dumps(sampling), **links},
        pictures=lambda _, folder: [loss_curves(config.output, folder)],
        pins={NEW_HEAD: phase.new_head},
    )
    return {**report, "classes": len(prepared.classes), "classes_without_clips": len(empty)}


def warn_empty_classes(prepared: PreparedSet) -> list[str]:
    """Classes without a training clip: they keep their logits, and are counted in the report."""
    empty = prepared.classes_without_clips("train")
    if empty:
        shown = f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}"
        echo(
            f"{len(empty)} of {len(prepared.classes)} classes of {prepared.uri} have no training "
            f"clip ({shown}); they will hardly be predicted",
            warning=True,
        )
    return empty


def _phase(config: FinetuneConfig) -> FinetunePhase:
    classes = claimed_set(config).classes
    pinned = pins_of(config.output).get(NEW_HEAD)  # a later start may not find `init` any more
    new_head = classes_of(config.init) != classes if pinned is None else pinned
    return FinetunePhase(config, len(classes), new_head=new_head)


def classes_of(init: str | None) -> tuple[str, ...] | None:
    """Classes that the head of ``init`` tells apart; None where it has no head or does not say.

    Public classifiers never say: of 400 classes they count as Kinetics-400's, which they are published for.

    Raises:
        UserError: nothing is there, or the file is damaged.
    """
    metadata = initial_metadata(init)
    if init is None or "config_class" in metadata:
        has_head = metadata.get("part") != ENCODER
        return tuple(json.loads(metadata["classes"])) if has_head and "classes" in metadata else None
    with local_weights(init) as path:
        try:
            head = read_weights(path).tensors.get("head.bias")
        except ValueError as error:
            raise UserError(f"init={init}: {str(error).replace(str(path), 'the file')}") from error
    listed = None if head is None else SHIPPED_CLASSES.get(len(head))
    return read_class_list(listed) if listed else None


def echo_new_head(init: str, num_classes: int) -> None:
    """Say that the head does not come from ``init``."""
    echo(f"init={init}: has no head for these {num_classes} classes in this order; the head starts new")


def dry_run(config: FinetuneConfig, plan: PlanConfig) -> Mapping[str, Any]:
    """What a run would take."""
    config = with_absolute_paths(config)
    if config.init is None or pins_of(config.output):  # a run that goes on has its own copy
        return dry_run_figures(config, _phase(with_initial_file(config)), plan)
    with initial_file(config.init, config.tracking, config.output) as file:
        return dry_run_figures(config, _phase(replace(config, init=file)), plan)


def main() -> None:
    """Entry point of ``python -m jobs.finetune``."""
    run_command("finetune", FinetuneConfig, run, description=DESCRIPTION, dry_run=dry_run, dry_run_plan=PlanConfig)


if __name__ == "__main__":
    main()
