"""Pretraining, probing and fine-tuning on clips in memory by the product's models, losses and optimizer, without Ray.

Everything is a function of its seeds and continues where it was cut off: weights and scores are kept in a folder.
Legend: B clips of a batch, N clips, T frames, S pixels of a side, C channels, K classes, U mask units.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hiera_video.augmentation.basic import AugmentConfig, augment, model_input
from hiera_video.augmentation.mixup import (
    MixConfig,
    draw_mix,
    mix_pixels,
    mix_targets,
    soft_cross_entropy,
    soft_targets,
)
from hiera_video.models.config import EncoderConfig, HieraConfig, MaskedAutoencoderConfig
from hiera_video.models.hiera import EncoderModel, Hiera
from hiera_video.models.masked_autoencoder import MaeOutput, MaskedAutoencoder
from hiera_video.models.random_draws import random_keep_mask
from hiera_video.models.targets import first_frames, token_targets
from hiera_video.optimization import OptimizerConfig, build_optimizer, learning_rate_at, set_learning_rate
from hiera_video.weights.checkpoint_files import Weights, fill_classifier, load_into_classifier, load_model, save_model
from pipeline.sampling import exact_stride_indices, generator
from pipeline.seeds import derive_seed
from tests.studies.clips import Clips, Labels

STEPS_BETWEEN_SAVES = 100
WARMUP_SHARE = 0.1
SCORED_AT_ONCE = 50


@dataclass(frozen=True)
class PretrainSetting:
    """How an encoder is pretrained."""

    model: MaskedAutoencoderConfig
    steps: int
    batch: int = 64
    learning_rate: float = 1e-3
    """Peak of the batch as it is, not scaled."""
    weight_decay: float = 0.05
    horizontal_flip: float = 0.5
    kept_at: tuple[int, ...] = ()
    """Steps after which the weights are kept, beside the last."""


@dataclass(frozen=True)
class FinetuneSetting:
    """How a classifier is trained, from pretrained weights or from scratch."""

    steps: int
    batch: int = 32
    learning_rate: float = 1e-3
    """Peak of the batch as it is, not scaled."""
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    drop_path: float = 0.0
    horizontal_flip: float = 0.5
    smoothing: float = 0.1
    mix: MixConfig = field(default_factory=MixConfig)
    fresh: Literal["classifier", "autoencoder"] = "classifier"
    """Whose initial weights the encoder has from scratch: the classifier's (deviation 0.02, as published), or those
    that pretraining begins with (Xavier), which are larger where layers are narrow."""


def views_of(
    clips: Clips, numbers: Sequence[int] | Labels, size: tuple[int, ...], draw: np.random.Generator | None
) -> Tensor:
    """A crop in space and time of each clip, random or the middle: uint8 ``[B, T, S, S, 3]``."""
    frames, side, _ = size
    stored_frames, stored_side = clips.frames.shape[1:3]
    margin = stored_side - side
    views = np.empty((len(numbers), *size, 3), np.uint8)
    for place, number in enumerate(numbers):
        times = exact_stride_indices(stored_frames, frames, 1, draw)
        top, left = (margin // 2,) * 2 if draw is None else draw.integers(0, margin + 1, 2).tolist()
        views[place] = clips.frames[number, times[0] : times[-1] + 1, top : top + side, left : left + side]
    return torch.from_numpy(views)


def pretrain(setting: PretrainSetting, clips: Clips, numbers: Labels, seed: int, folder: Path) -> dict[str, Any]:
    """Masked autoencoding of these clips; the weights of every kept step and the losses come into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "pretrain.json"
    if report.exists():
        return dict(json.loads(report.read_text()))
    torch.manual_seed(seed)
    model = MaskedAutoencoder(setting.model)
    config = OptimizerConfig(betas=(0.9, 0.95), weight_decay=setting.weight_decay)
    optimizer = build_optimizer(model, config)
    state = _Progress.resumed(model, optimizer, folder / "progress.pt")
    flips = AugmentConfig(horizontal_flip=setting.horizontal_flip)
    while state.done < setting.steps:
        if state.done in setting.kept_at:
            save_model(weights_at(folder, state.done), model)
        _set_rate(optimizer, state.done, setting.steps, setting.learning_rate)
        draw = generator(seed, "pretrain", state.done)
        chosen = draw.choice(numbers, setting.batch, replace=False)
        pixels = model_input(views_of(clips, chosen, setting.model.input_size, draw), setting.model)
        noise = torch.Generator().manual_seed(derive_seed(seed, "mask", state.done))
        pixels = augment(pixels, flips, torch.rand(len(pixels), generator=noise))
        loss = _masked(model, pixels, noise).loss
        state.step(loss, optimizer, model)
    save_model(weights_at(folder, setting.steps), model)
    figures = {"steps": state.done, "seconds": state.seconds(), "losses": state.losses}
    report.write_text(json.dumps(figures))
    return figures


def weights_at(folder: Path, step: int) -> Path:
    """The file of the weights after so many steps."""
    return folder / f"step-{step}.safetensors"


@torch.inference_mode()
def reconstruction_losses(weights: Path, clips: Clips, numbers: Labels, seed: int) -> dict[str, float]:
    """Loss of hidden tokens by the model, and by the clip's own mean frame: the best guess that knows no motion."""
    model = load_model(weights).eval()
    assert isinstance(model, MaskedAutoencoder)
    noise = torch.Generator().manual_seed(seed)
    losses = []
    for start in range(0, len(numbers), SCORED_AT_ONCE):
        chosen = numbers[start : start + SCORED_AT_ONCE]
        pixels = model_input(views_of(clips, chosen, model.config.input_size, None), model.config)
        output = _masked(model, pixels, noise)
        still = first_frames(model.config, pixels).mean(2, keepdim=True).expand_as(pixels)
        hidden = _hidden_tokens(model, output.keep_mask)
        guess, target = (token_targets(model.config, shown, hidden) for shown in (still, pixels))
        losses.append((float(output.loss), float((guess - target).square().mean()), float(target.var())))
    model_loss, mean_frame, variance = np.mean(losses, axis=0)
    return {"loss": float(model_loss), "mean_frame": float(mean_frame), "variance": float(variance)}


def _hidden_tokens(model: MaskedAutoencoder, keep_mask: Tensor) -> Tensor:
    """Raster numbers of the hidden tokens, ascending: ``[B, N]``."""
    hidden = ~keep_mask[:, model.unit_of_token]
    return hidden.nonzero()[:, 1].view(len(keep_mask), -1)


def _masked(model: MaskedAutoencoder, pixels: Tensor, noise: torch.Generator) -> MaeOutput:
    keep_mask = random_keep_mask(len(pixels), model.num_mask_units, model.config.mask_ratio, noise)
    output: MaeOutput = model(pixels, keep_mask=keep_mask, draws=model.draw(len(pixels), noise))
    return output


@torch.inference_mode()
def maps_of(model: EncoderModel, clips: Clips) -> Tensor:
    """The last stage's map of every clip's middle view: ``[N, T / 2, h, w, C]``."""
    model.eval()
    config = model.encoder.config
    parts = []
    for start in range(0, len(clips.labels), SCORED_AT_ONCE):
        numbers = np.arange(start, min(start + SCORED_AT_ONCE, len(clips.labels)))
        views = views_of(clips, numbers, config.input_size, None)
        parts.append(model.encoder(model_input(views, config))[-1])
    return torch.cat(parts)


RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def ridge_top1(
    features: npt.NDArray[np.float32], labels: Labels, train: Labels, held_out: Labels, ridges: Sequence[float] = RIDGES
) -> float:
    """Share of held-out clips that ridge regression of the classes gets right, by the best of ``ridges``."""
    mean, deviation = features[train].mean(0), features[train].std(0) + 1e-6
    known, asked = ((features[numbers] - mean) / deviation for numbers in (train, held_out))
    products, queries = known @ known.T / known.shape[1], asked @ known.T / known.shape[1]
    classes = np.eye(labels.max() + 1, dtype=np.float32)[labels[train]]
    shares = []
    for ridge in ridges:
        scores = queries @ np.linalg.solve(products + ridge * np.eye(len(train), dtype=np.float32), classes)
        shares.append(float((scores.argmax(1) == labels[held_out]).mean()))
    return max(shares)


def labelled(clips: Clips, per_class: int, seed: int) -> Labels:
    """Numbers of the training clips whose labels are given: so many of each class, or with 0 all."""
    train = clips.of_split("train")
    if not per_class:
        return train
    draw = generator(seed, "labels", per_class)
    classes = range(len(clips.classes))
    return np.concatenate([draw.choice(train[clips.labels[train] == k], per_class, replace=False) for k in classes])


def finetune(
    setting: FinetuneSetting, model: HieraConfig, clips: Clips, train: Labels, seed: int, weights: Path | None
) -> tuple[Hiera, dict[str, Any]]:
    """A classifier trained on these clips, from pretrained weights or from scratch."""
    torch.manual_seed(seed)
    classifier = Hiera(model)
    if weights is not None:
        load_into_classifier(classifier, weights)
    elif setting.fresh == "autoencoder":
        fill_classifier(classifier, Weights(*_fresh_autoencoder(model)), "fresh weights")
    config = OptimizerConfig(layer_decay=setting.layer_decay, weight_decay=setting.weight_decay)
    optimizer = build_optimizer(classifier, config)
    state = _Progress()
    classifier.train()
    while state.done < setting.steps:
        _set_rate(optimizer, state.done, setting.steps, setting.learning_rate)
        loss = _classification_loss(classifier, setting, clips, train, seed, state.done)
        state.step(loss, optimizer, classifier)
    return classifier, {"final_loss": float(np.mean(state.losses[-20:])), "seconds": state.seconds()}


def _fresh_autoencoder(model: HieraConfig) -> tuple[dict[str, Tensor], MaskedAutoencoderConfig]:
    """Initial weights of pretraining's encoder, and the configuration that they belong to."""
    shared = {part.name: getattr(model, part.name) for part in dataclasses.fields(EncoderConfig)}
    config = MaskedAutoencoderConfig(**shared)
    tensors = MaskedAutoencoder(config).state_dict()
    return {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}, config


def _classification_loss(
    classifier: Hiera, setting: FinetuneSetting, clips: Clips, train: Labels, seed: int, step: int
) -> Tensor:
    chosen = _chosen(train, setting.batch, seed, step)
    noise = torch.Generator().manual_seed(derive_seed(seed, "noise", step))
    views = views_of(clips, chosen, classifier.config.input_size, generator(seed, "finetune", step))
    pixels = model_input(views, classifier.config)
    flips = AugmentConfig(horizontal_flip=setting.horizontal_flip)
    pixels = augment(pixels, flips, torch.rand(len(pixels), generator=noise))
    targets = soft_targets(torch.from_numpy(clips.labels[chosen]), len(clips.classes), setting.smoothing)
    mix = draw_mix(setting.mix, [str(number) for number in chosen], *pixels.shape[-2:], noise)
    logits = classifier(mix_pixels(pixels, mix), classifier.draw(len(pixels), noise))
    return soft_cross_entropy(logits, mix_targets(targets, mix))


def _chosen(train: Labels, batch: int, seed: int, step: int) -> Labels:
    """The clips of a step: one endless stream of seeded permutations."""
    epochs, places = np.divmod(step * batch + np.arange(batch), len(train))
    orders = {epoch: generator(seed, "order", epoch).permutation(train) for epoch in set(epochs.tolist())}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])


@torch.inference_mode()
def top1(classifier: Hiera, clips: Clips, numbers: Labels) -> float:
    """Share of clips whose middle view gets its class the highest score."""
    classifier.eval()
    right = 0
    for start in range(0, len(numbers), SCORED_AT_ONCE):
        chosen = numbers[start : start + SCORED_AT_ONCE]
        views = views_of(clips, chosen, classifier.config.input_size, None)
        scores = classifier(model_input(views, classifier.config))
        right += int((scores.argmax(1).numpy() == clips.labels[chosen]).sum())
    return right / len(numbers)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float) -> None:
    warmup = max(1, int(WARMUP_SHARE * steps))
    set_learning_rate(optimizer, learning_rate_at(step, total_steps=steps, warmup_steps=warmup, peak=peak, final=1e-6))


class _Progress:
    """Steps done, losses and time; kept in a file now and then, if one is given."""

    def __init__(
        self, path: Path | None = None, done: int = 0, spent: float = 0.0, losses: Sequence[float] = ()
    ) -> None:
        self.path, self.done, self.losses = path, done, list(losses)
        self._spent, self._started = spent, time.thread_time()

    @classmethod
    def resumed(cls, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> _Progress:
        if not path.exists():
            return cls(path)
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        return cls(path, kept["done"], kept["seconds"], kept["losses"])

    def seconds(self) -> float:
        """Processor time of the training thread, that before a cut included: others may have had the machine."""
        return self._spent + time.thread_time() - self._started

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        self.losses.append(float(loss.detach()))
        self.done += 1
        if self.done % STEPS_BETWEEN_SAVES == 0:
            recent = float(np.mean(self.losses[-STEPS_BETWEEN_SAVES:]))
            print(f"step {self.done}: loss {recent:.4f}, {self.seconds():.0f} s of a core", flush=True)
            if self.path is not None:
                self._save(model, optimizer, self.path)

    def _save(self, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
        state: Mapping[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        unfinished = path.with_suffix(".writing")
        torch.save({**state, "done": self.done, "seconds": self.seconds(), "losses": self.losses}, unfinished)
        unfinished.replace(path)
