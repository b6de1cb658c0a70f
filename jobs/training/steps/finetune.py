"""Fine-tuning: its configuration, and classification as a training step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from torch import Tensor
from torch.nn import functional

from hiera_video.analysis.flops import complexity_of
from hiera_video.augmentation.basic import ClassifierAugmentConfig, augment, model_input, random_erase
from hiera_video.augmentation.mixup import (
    MixConfig,
    draw_mix,
    mix_pixels,
    mix_targets,
    soft_cross_entropy,
    soft_targets,
)
from hiera_video.augmentation.rand_augment import fill_colour, parse_rand_augment, rand_augment
from hiera_video.models.config import EncoderConfig, HieraConfig
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import set_activation_checkpointing
from hiera_video.models.random_draws import sample_uniforms
from hiera_video.rules import Rules
from hiera_video.weights.checkpoint_files import load_into_classifier
from jobs.core.init_source import SAMPLING, local_weights
from jobs.runs.tracking_config import unrecorded
from jobs.training.config import TrainConfig
from jobs.training.mfu import BACKWARD_AND_FORWARD
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.step import TrainStep
from jobs.weights.model_config import overridden_config
from pipeline.sampling import ViewConfig
from pipeline.shards.reader import PreparedSet

if TYPE_CHECKING:  # it loads MLflow, which a step does not need
    from jobs.training.start import Start


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Classification (paper Tab. 11b)."""

    model: str = "hiera_base_16x224"
    """Preset of the classifier; its number of classes comes from the data."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Changes to the preset: `drop_path_rate`, `head_dropout`, `input_size`, ..."""
    new_blocks: int = 0
    """How many of the encoder's last blocks get new weights instead of those of `init`: after a short pretraining the
    last ones can be worse than new ones (arXiv 2006.05987, section 4)."""
    learn: Literal["all", "norm_and_head", "head"] = "all"
    """What learns: everything; what comes after the encoder, which stays as `init` has it (frozen encoder); or the
    linear head alone, on features that stay the same (linear probe)."""
    label_smoothing: float = 0.1
    """Label smoothing (paper Tab. 11b: 0.1)."""
    augment: ClassifierAugmentConfig = field(default_factory=ClassifierAugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)

    def rules(self) -> Rules:
        yield from super().rules()
        rule = f"must be a classifier; did you mean {self.model.removeprefix('mae_')}?"
        yield "model", not self.model.startswith("mae_"), rule
        if (count := self.model_overrides.get("num_classes")) is not None:
            raise ValueError(f"model_overrides.num_classes={count}: comes from the data's class list; drop it")
        self.check_input_size()
        depth = sum(overridden_config(self.model, self.model_overrides).stages)
        yield "new_blocks", 0 <= self.new_blocks <= depth, f"the encoder has {depth} blocks; use 0 to {depth}"
        yield "label_smoothing", 0 <= self.label_smoothing < 1, "must lie in [0, 1); the paper uses 0.1"
        rule = (
            "mixup and cutmix mix the views of a micro-batch with each other; use 2 or more, or mix.mixup=0 "
            "mix.cutmix=0"
        )
        yield "micro_batch", self.micro_batch >= self.fewest_views, rule
        rule = (
            f"leaves the encoder as init has it (init={self.init}, new_blocks={self.new_blocks}); give "
            "init=RUN_OUTPUT new_blocks=0, or use learn=all"
        )
        yield "learn", self.learn == "all" or (self.init is not None and not self.new_blocks), rule

    @property
    def fewest_views(self) -> int:
        """Two where views are mixed with each other."""
        return 2 if self.mix.on else 1

    @property
    def encoder(self) -> EncoderConfig:
        return overridden_config(self.model, self.model_overrides)

    @property
    def views(self) -> ViewConfig:
        """Training views; where a micro-batch could hold the repeats of one clip alone, they come apart to be mixed."""
        alone = self.mix.on and 1 < self.micro_batch <= self.view.repeats
        return replace(super().views, clips_side_by_side=self.micro_batch if alone else 1)

    @property
    def learning_names(self) -> tuple[str, ...]:
        """How the names of the parameters begin that `learn` leaves to learn."""
        names: dict[str, tuple[str, ...]] = {"all": ("",), "norm_and_head": ("norm.", "head."), "head": ("head.",)}
        return names[self.learn]

    def model_config(self, num_classes: int) -> HieraConfig:
        """The classifier's configuration for a set of so many classes."""
        return cast(HieraConfig, overridden_config(self.model, self.model_overrides, num_classes=num_classes))


class Classification(TrainStep[Hiera]):
    """Augment, mix, classify, compare with the labels."""

    def __init__(self, config: FinetuneConfig, num_classes: int) -> None:
        super().__init__(Hiera(config.model_config(num_classes)), config.precision)
        self._config = config
        self._policy = parse_rand_augment(config.augment.rand_augment) if config.augment.rand_augment else None
        set_activation_checkpointing(self.model, config.activation_checkpointing)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(config.learning_names))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """An encoder that does not learn drops no path: its features stay the same."""
        super().train(mode)
        self.model.encoder.train(mode and self._config.learn == "all")
        return self

    def forward(self, batch: MicroBatch) -> Tensor:
        """Cross entropy with soft targets, the mean over the labelled views: scalar."""
        pixels = self._augmented(batch)
        # Without a label: no view of the micro-batch could be decoded.
        targets = soft_targets(batch.labels, self.model.config.num_classes, self._config.label_smoothing)
        height, width = pixels.shape[-2:]
        mix = draw_mix(self._config.mix, batch.videos, height, width, batch.generator("mix"))
        draws = self.model.draw(len(batch.sample_ids), batch.generator("drop path"), pixels.device)
        with self._autocast(batch.frames.device):
            logits = self.model(mix_pixels(pixels, mix), draws=draws)
        return soft_cross_entropy(logits, mix_targets(targets, mix))

    def _augmented(self, batch: MicroBatch) -> Tensor:
        """Normalised pixels ``[B, 3, T, H, W]``, changed by each sample's own draws."""
        frames, config = batch.frames, self._config.augment
        if self._policy is not None:
            noise = sample_uniforms(batch.sample_seeds("rand augment"), self._policy.draws)
            frames = rand_augment(frames, self._policy, noise, fill_colour(self.model.config))
        flips = sample_uniforms(batch.sample_seeds("flip"), 1)[:, 0]
        pixels = model_input(augment(frames, config, flips), self.model.config)
        return random_erase(pixels, config.random_erasing, batch.sample_seeds("erasing"))

    def measure(self, batch: MicroBatch) -> Mapping[str, float]:
        """Cross entropy and whether the highest logit is the label's."""
        with self._autocast(batch.frames.device):
            logits = self.model(model_input(batch.frames, self.model.config)).float()
        loss = functional.cross_entropy(logits, batch.labels)
        return {"loss": float(loss), "top1": float((logits.argmax(1) == batch.labels).float().mean())}

    def multiply_adds(self) -> int | None:
        forward = complexity_of(self.model.config).multiply_adds
        return BACKWARD_AND_FORWARD * forward if self._config.learn == "all" else forward

    def embed(self, batch: MicroBatch) -> Tensor | None:
        """The features before the head, ``[B, C]``."""
        with self._autocast(batch.frames.device):
            return self.model.embed(model_input(batch.frames, self.model.config))


@dataclass(frozen=True)
class FinetunePhase:
    """How fine-tuning builds its model."""

    config: FinetuneConfig
    classes: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    new_head: bool = False
    labelled_only: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", unrecorded(self.config))

    @classmethod
    def of(cls, start: Start[FinetuneConfig]) -> FinetunePhase:
        """The phase that a start describes."""
        return cls(start.worker_config, start.prepared.classes, start.links, start.new_head)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What every later use of the classifier asks of its weights file."""
        view = self.config.views
        chosen = {"sampling": view.sampling, "frame_stride": view.frame_stride}
        sampling = chosen if view.media == "video" else {}
        return {"classes": json.dumps(self.classes), SAMPLING: json.dumps(sampling), **self.links}

    def build_step(self, *, load_init: bool) -> Classification:
        step = Classification(self.config, len(self.classes))
        if load_init and self.config.init:
            with local_weights(self.config.init) as path:
                load_into_classifier(step.model, path, new_blocks=self.config.new_blocks, new_head=self.new_head)
        return step

    def pictures(self, model: Hiera, prepared: PreparedSet, folder: Path) -> list[Path]:
        return []
