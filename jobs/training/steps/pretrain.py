"""Pretraining: its configuration, and masked autoencoding as a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hiera_video.analysis.flops import complexity_of
from hiera_video.augmentation.basic import AugmentConfig, augment, model_input
from hiera_video.models.config import EncoderConfig, MaskedAutoencoderConfig
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import set_activation_checkpointing
from hiera_video.models.random_draws import random_keep_mask, sample_uniforms
from hiera_video.rules import Rules
from hiera_video.weights.checkpoint_files import load_weights
from jobs.core.holdings import is_registered
from jobs.core.init_source import LICENSE, local_weights
from jobs.reports.reconstruction import reconstruction_picture
from jobs.runs.tracking_config import unrecorded
from jobs.training.config import ProbedValidationConfig, TrainConfig
from jobs.training.mfu import BACKWARD_AND_FORWARD
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.step import TrainStep
from jobs.weights.model_config import overridden_config
from pipeline.datasets.train import iter_micro_batches, training_stream
from pipeline.shards.reader import PreparedSet

if TYPE_CHECKING:  # it loads MLflow, which a step does not need
    from jobs.training.start import Start


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Masked-autoencoder pretraining (paper Tab. 11a)."""

    model: str = "mae_hiera_base_16x224"
    """Preset of the masked autoencoder; `hiera_video.model_names()` lists all."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """Changes to the preset: `drop_path_rate`, `decoder`, `target`, `input_size`, ..."""
    mask_ratio: float = 0.9
    """Share of hidden mask units (paper Tab. 3: 0.9 is best for video)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    validation: ProbedValidationConfig = field(default_factory=ProbedValidationConfig)
    picture_clips: int = 6
    """Clips in the picture of reconstructions; 0 for none."""

    def rules(self) -> Rules:
        yield from super().rules()
        yield "model", self.model.startswith("mae_"), f"must be a masked autoencoder; did you mean mae_{self.model}?"
        self.check_input_size()
        rule = (
            "the registry holds classifiers, pretraining starts from an autoencoder; give the output of a "
            "pretraining run"
        )
        yield "init", not (self.init and is_registered(self.init)), rule
        yield "picture_clips", self.picture_clips >= 0, "must not be negative; use 0 for no picture"

    @property
    def model_config(self) -> MaskedAutoencoderConfig:
        """The model's configuration."""
        changed = overridden_config(self.model, self.model_overrides, mask_ratio=self.mask_ratio)
        return cast(MaskedAutoencoderConfig, changed)

    @property
    def encoder(self) -> EncoderConfig:
        return self.model_config

    @property
    def has_picture(self) -> bool:
        """Whether reconstructions can be drawn: pixels predicted for every hidden token."""
        pixels, everywhere = self.model_config.target != "hog", self.model_config.decoder == "full"
        return self.picture_clips > 0 and pixels and everywhere


class MaskedAutoencoding(TrainStep[MaskedAutoencoder]):
    """Augment, mask, reconstruct."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(MaskedAutoencoder(config.model_config), config.precision)
        self._picture_clips = config.picture_clips if config.has_picture else 0
        self._augment, self._mask_ratio = config.augment, config.mask_ratio
        set_activation_checkpointing(self.model, config.activation_checkpointing)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Mean squared error over the hidden tokens: scalar."""
        flips = sample_uniforms(batch.sample_seeds("flip"), 1)[:, 0]
        pixels = model_input(augment(batch.frames, self._augment, flips), self.model.config)
        return self._loss(pixels, batch.sample_seeds("mask"), batch.generator("drop path"))

    def measure(self, batch: MicroBatch) -> Mapping[str, float]:
        """The reconstruction loss under the view's own fixed mask."""
        generator = torch.Generator().manual_seed(batch.sample_seeds("validation tokens")[0])
        return {
            "loss": float(
                self._loss(
                    model_input(batch.frames, self.model.config), batch.sample_seeds("validation mask"), generator
                )
            )
        }

    def _loss(self, pixels: Tensor, mask_seeds: list[int], generator: torch.Generator) -> Tensor:
        """The loss of normalised pixels ``[B, 3, T, H, W]``; the generator draws drop path and decoder tokens."""
        samples, device = len(pixels), pixels.device
        keep_mask = random_keep_mask(
            samples, self.model.num_mask_units, self._mask_ratio, seeds=mask_seeds, device=device
        )
        draws = self.model.draw(samples, generator, device, mask_ratio=self._mask_ratio)
        with self._autocast(device):
            loss: Tensor = self.model(pixels, mask_ratio=self._mask_ratio, keep_mask=keep_mask, draws=draws).loss
        return loss

    def multiply_adds(self) -> int | None:
        return BACKWARD_AND_FORWARD * complexity_of(self.model.config).multiply_adds

    def embed(self, batch: MicroBatch) -> Tensor | None:
        """The mean token of the encoder's last stage over the whole view, ``[B, C]``."""
        with self._autocast(batch.frames.device):
            return self.model.encoder.encode(model_input(batch.frames, self.model.config))[-1].tokens.mean(dim=(1, 2))

    def picture(self, frames: Tensor, path: Path) -> bool:
        """Originals, masked inputs and reconstructions, under masks that are the same every time."""
        shown = frames[: self._picture_clips]
        if len(shown):
            reconstruction_picture(self.model, shown, path, mask_ratio=self._mask_ratio)
        return len(shown) > 0


@dataclass(frozen=True)
class PretrainPhase:
    """How pretraining builds its model."""

    config: PretrainConfig
    labelled_only: bool = False
    links: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", unrecorded(self.config))

    @classmethod
    def of(cls, start: Start[PretrainConfig]) -> PretrainPhase:
        """The phase that a start describes."""
        return cls(start.worker_config, links=start.links)

    @property
    def metadata(self) -> Mapping[str, str]:
        return {LICENSE: self.links[LICENSE]} if LICENSE in self.links else {}

    def build_step(self, *, load_init: bool) -> MaskedAutoencoding:
        step = MaskedAutoencoding(self.config)
        if load_init and self.config.init:
            with local_weights(self.config.init) as path:
                load_weights(step.model, path)
        return step

    def pictures(self, model: MaskedAutoencoder, prepared: PreparedSet, folder: Path) -> list[Path]:
        """Reconstructions of the first views of the stream."""
        if not self.config.has_picture:
            return []
        path = folder / "reconstructions.png"
        frames = _first_views(self.config, prepared, self.config.picture_clips)
        reconstruction_picture(model, frames, path, mask_ratio=self.config.mask_ratio)
        return [path]


def _first_views(config: TrainConfig, prepared: PreparedSet, count: int) -> Tensor:
    """The first views of the run's stream: uint8 ``[count, T, H, W, 3]``."""
    stream = training_stream(
        prepared,
        config.views,
        seed=config.seed,
        micro_batch=count,
        start_position=0,
        stop_position=count,
        split="train",
        labelled_only=False,
        decode=config.decode.limits,
        concurrency=1,
    )
    (batch,) = iter_micro_batches(stream)  # read to its end, which frees its CPUs at once
    return torch.from_numpy(batch["video"].copy())
