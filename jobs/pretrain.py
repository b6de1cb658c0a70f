"""Pretrain a Hiera encoder as a masked autoencoder on a prepared set of videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hiera_video.analysis.flops import complexity_of
from hiera_video.augmentation.basic import AugmentConfig, augment, normalize_video
from hiera_video.models.config import MaskedAutoencoderConfig
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import build_model, set_activation_checkpointing
from hiera_video.models.random_draws import random_keep_mask, sample_uniforms
from hiera_video.weights.checkpoint_files import load_weights
from jobs.core.cli import run_command
from jobs.core.init_source import is_registered, local_weights
from jobs.reports.reconstruction import reconstruction_picture
from jobs.runs.tracking import unrecorded
from jobs.training.config import TrainConfig
from jobs.training.driver import (
    initial_links,
    loss_curves,
    run_training,
    sample_views,
    with_absolute_paths,
)
from jobs.training.dry_run import PlanConfig, dry_run_figures
from jobs.training.loop import TrainStep
from jobs.training.mfu import BACKWARD_AND_FORWARD
from jobs.training.micro_batch import MicroBatch
from jobs.training.validation import ProbedValidationConfig
from jobs.weights.model_config import architecture

DESCRIPTION = "Pretrain a Hiera encoder as a masked autoencoder on the videos of a prepared set."


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.startswith("mae_"):
            raise ValueError(f"model={self.model}: must be a masked autoencoder; did you mean mae_{self.model}?")
        self.check_input_size()
        if self.init and is_registered(self.init):
            raise ValueError(
                f"init={self.init}: the registry holds classifiers, pretraining goes on from an autoencoder; give the "
                "output of a pretraining run"
            )
        if self.picture_clips < 0:
            raise ValueError(f"picture_clips={self.picture_clips}: must not be negative; use 0 for no picture")

    @property
    def architecture(self) -> MaskedAutoencoderConfig:
        """The model's configuration."""
        changed = architecture(self.model, self.model_overrides, mask_ratio=self.mask_ratio)
        return cast(MaskedAutoencoderConfig, changed)

    @property
    def input_size(self) -> tuple[int, ...]:
        """See `TrainConfig`."""
        return self.architecture.input_size

    @property
    def has_picture(self) -> bool:
        """Whether reconstructions can be drawn: pixels predicted for every hidden token."""
        pixels, everywhere = self.architecture.target != "hog", self.architecture.decoder == "full"
        return self.picture_clips > 0 and pixels and everywhere


class MaskedAutoencoding(TrainStep):
    """Augment, mask, reconstruct."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(build_model(config.architecture))
        self._picture_clips = config.picture_clips if config.has_picture else 0
        self._augment, self._mask_ratio, self._precision = config.augment, config.mask_ratio, config.precision
        set_activation_checkpointing(self.model, config.activation_checkpointing)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Mean squared error over the hidden tokens: scalar."""
        model: MaskedAutoencoder = self.model  # type: ignore[assignment]
        samples, device = len(batch.sample_ids), batch.frames.device
        flips = sample_uniforms(batch.sample_seeds("flip"), 1)[:, 0]
        pixels = augment(normalize_video(batch.frames), self._augment, flips)
        keep_mask = random_keep_mask(
            samples, model.num_mask_units, self._mask_ratio, seeds=batch.sample_seeds("mask"), device=device
        )
        draws = model.draw(samples, batch.generator("drop path"), device, mask_ratio=self._mask_ratio)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return model(pixels, mask_ratio=self._mask_ratio, keep_mask=keep_mask, draws=draws).loss  # type: ignore[no-any-return]

    def measure(self, batch: MicroBatch) -> Mapping[str, float]:
        """The reconstruction loss under the view's own fixed mask."""
        model: MaskedAutoencoder = self.model  # type: ignore[assignment]
        samples, device = len(batch.sample_ids), batch.frames.device
        seeds = batch.sample_seeds("held-out mask")
        keep_mask = random_keep_mask(samples, model.num_mask_units, self._mask_ratio, seeds=seeds, device=device)
        generator = torch.Generator().manual_seed(batch.sample_seeds("held-out tokens")[0])
        draws = model.draw(samples, generator, device, mask_ratio=self._mask_ratio)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            pixels = normalize_video(batch.frames)
            return {"loss": float(model(pixels, mask_ratio=self._mask_ratio, keep_mask=keep_mask, draws=draws).loss)}

    def multiply_adds(self) -> int | None:
        """See `TrainStep`."""
        return BACKWARD_AND_FORWARD * complexity_of(self.model.config).multiply_adds  # type: ignore[arg-type]

    def embed(self, batch: MicroBatch) -> Tensor | None:
        """The mean token of the encoder's last stage over the whole view, ``[B, C]``."""
        model: MaskedAutoencoder = self.model  # type: ignore[assignment]
        with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return model.encoder.encode(normalize_video(batch.frames))[-1].tokens.mean(dim=(1, 2))

    def picture(self, frames: Tensor, path: Path) -> bool:
        """Originals, masked inputs and reconstructions, under masks that are the same every time."""
        shown = frames[: self._picture_clips]
        if len(shown):
            reconstruction_picture(self.model, shown, path, mask_ratio=self._mask_ratio)  # type: ignore[arg-type]
        return len(shown) > 0


@dataclass(frozen=True)
class PretrainPhase:
    """How pretraining builds its model."""

    config: PretrainConfig
    labelled_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", unrecorded(self.config))

    def build_step(self, *, load_init: bool) -> MaskedAutoencoding:
        """See `jobs.training.loop.Phase`."""
        step = MaskedAutoencoding(self.config)
        if load_init and self.config.init:
            with local_weights(self.config.init) as path:
                load_weights(step.model, path)  # type: ignore[arg-type]
        return step


def run(config: PretrainConfig) -> Mapping[str, Any]:
    """Train, then write weights, journal and pictures; returns the report."""
    config = with_absolute_paths(config)

    def pictures(model: nn.Module, folder: Path) -> list[Path]:
        drawn = [loss_curves(config.output, folder)]
        if config.has_picture:
            drawn.append(folder / "reconstructions.png")
            frames = sample_views(config, config.picture_clips)
            reconstruction_picture(model, frames, drawn[-1], mask_ratio=config.mask_ratio)  # type: ignore[arg-type]
        return drawn

    links = initial_links(config.output, config.init)
    return run_training("pretrain", config, PretrainPhase(config), links=links, metadata={}, pictures=pictures)


def main() -> None:
    """Entry point of ``python -m jobs.pretrain``."""
    run_command(
        "pretrain",
        PretrainConfig,
        run,
        description=DESCRIPTION,
        dry_run=lambda config, plan: dry_run_figures(config, PretrainPhase(config), plan),
        dry_run_plan=PlanConfig,
    )


if __name__ == "__main__":
    main()
