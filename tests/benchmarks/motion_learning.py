"""Pretraining and fine-tuning on rendered motion videos in memory, by the programs' own steps, without Ray.

Everything is a function of its seeds and goes on where it was cut off: clips, weights and scores are kept in a folder.
Legend: N clips, T frames, S pixels of a side.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hiera_video.augmentation.basic import normalize_video
from hiera_video.optimization import build_optimizer, learning_rate_at, set_learning_rate
from hiera_video.weights.checkpoint_files import load_into_classifier, save_model
from jobs.core.config import load_config
from jobs.synthetic.motion_videos import MOTION_CLASSES, Rendering, draw_frames, draw_motion
from jobs.training.config import TrainConfig
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.finetune import Classification, FinetuneConfig
from jobs.training.steps.pretrain import MaskedAutoencoding, PretrainConfig
from jobs.training.steps.step import TrainStep

STEPS_BETWEEN_SAVES = 50
SMALLEST_DRAWN = 64  # see `Rendering`
Clips = npt.NDArray[np.uint8]  # [N, T, S, S, 3]
LabelledClips = tuple[Clips, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Task:
    """Which videos there are, and how much is learned from them."""

    difficulty: float
    """Appearance, see `Rendering`."""
    unlabelled: int
    labels_per_class: int
    validation: int
    pretrain_steps: int
    finetune_steps: int
    pretrain_keys: tuple[str, ...] = ()
    """Changes to the recipe `demo` of pretraining."""
    finetune_keys: tuple[str, ...] = ()
    """Changes to the recipe `demo` of fine-tuning."""
    frames: int = 16
    size: int = 96
    margin: int = 8
    """Pixels of the side that a random crop leaves out."""


def digest_of(task: Task) -> str:
    """Name of a folder whose contents are of this task alone."""
    return hashlib.sha256(repr(task).encode()).hexdigest()[:8]


def draw_sets(task: Task, folder: Path) -> tuple[LabelledClips, LabelledClips, LabelledClips]:
    """The unlabelled, the labelled and the held-out clips, which share none; drawn where ``folder`` lacks them."""
    labelled = task.labels_per_class * len(MOTION_CLASSES)
    return (
        clips_of(task, "unlabelled", task.unlabelled, 1, folder),
        clips_of(task, "labelled", labelled, 2, folder),
        clips_of(task, "held-out", task.validation, 3, folder),
    )


def learned(
    task: Task,
    seed: int,
    folder: Path,
    result: Path,
    weights: Path | None,
    *,
    pretrain_keys: tuple[str, ...] = (),
    finetune_keys: tuple[str, ...] = (),
    seconds: float | None = None,
) -> dict[str, float]:
    """Pretrain, unless from scratch, and fine-tune, on one thread: top-1 and what pretraining took.

    Args:
        folder: of the clips.
        result: JSON file of the score.
        weights: file of the pretrained encoder; None to learn from scratch.
        seconds: see `pretrain`.
    """
    torch.set_num_threads(1)
    (unlabelled, _), labelled, validation = draw_sets(task, folder)
    pretrained = {}
    if weights is not None:
        figures = pretrain(pretrain_config(task, seed, *pretrain_keys), unlabelled, weights, seconds=seconds)
        pretrained = {"loss": figures["final_loss"], "steps": figures["steps"], "seconds": figures["seconds"]}
    config = finetune_config(task, seed, *finetune_keys)
    return {"top1": finetuned_top1(config, labelled, validation, result, weights), **pretrained}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds; no spread of one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def clips_of(task: Task, name: str, count: int, seed: int, folder: Path) -> LabelledClips:
    """Clips drawn once and mapped from a file afterwards, and their classes, which take turns."""
    path = folder / f"{name}-{count}-{task.difficulty:g}-{task.size}-{seed}.npy"
    labels = np.arange(count) % len(MOTION_CLASSES)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        side = task.size + task.margin
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        clips = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, task.frames, side, side, 3))
        for number, label in enumerate(labels):
            clips[number] = _drawn(task, MOTION_CLASSES[label], side, np.random.default_rng([seed, number]))
        clips.flush()
        unfinished.replace(path)
    mapped: Clips = np.load(path, mmap_mode="r")
    return mapped, labels


def _drawn(task: Task, label: str, side: int, rng: np.random.Generator) -> Clips:
    """Frames ``[T, side, side, 3]``; drawn larger and averaged where they are smaller than can be drawn."""
    factor = -(-SMALLEST_DRAWN // side)
    rendering = Rendering(task.difficulty, side * factor, task.frames)
    frames = draw_frames([draw_motion(label, task.frames, rng) for _ in range(rendering.shapes)], rendering, rng)
    blocks = frames.reshape(task.frames, side, factor, side, factor, 3)
    return blocks.mean((2, 4)).round().astype(np.uint8)


def pretrain_config(task: Task, seed: int, *more: str) -> PretrainConfig:
    """The recipe `demo`, for this task."""
    keys = ["demo", *_common(task, seed, task.pretrain_steps), *task.pretrain_keys, *more]
    return load_config(PretrainConfig, "pretrain", keys)


def finetune_config(task: Task, seed: int, *more: str) -> FinetuneConfig:
    """The recipe `demo`, for this task."""
    keys = ["demo", *_common(task, seed, task.finetune_steps), *task.finetune_keys, *more]
    return load_config(FinetuneConfig, "finetune", keys)


def _common(task: Task, seed: int, steps: int) -> list[str]:
    return [f"steps={steps}", f"seed={seed}", "data=memory", "output=memory", "workers=1", "tracking.uri=none"]


def pretrain(config: PretrainConfig, clips: Clips, weights: Path, *, seconds: float | None = None) -> dict[str, Any]:
    """Pretrain and write the encoder; figures of the run. Nothing is done when the file is there.

    Args:
        seconds: train for so much time instead of so many steps, be it more or fewer (the schedule follows the time).
    """
    report = weights.with_suffix(".json")
    if not report.exists():
        torch.manual_seed(config.seed)
        step = MaskedAutoencoding(config)
        figures = train(step, config, clips, np.full(len(clips), -1), weights.with_suffix(".part"), seconds=seconds)
        save_model(weights, step.model, {})
        report.write_text(json.dumps(figures))
    figures = json.loads(report.read_text())
    return dict(figures)


def finetuned_top1(
    config: FinetuneConfig,
    labelled: LabelledClips,
    validation: LabelledClips,
    result: Path,
    init: Path | None,
) -> float:
    """Fine-tune from an encoder, or from scratch, and score; kept in a file."""
    if not result.exists():
        torch.manual_seed(config.seed)  # the head, and the encoder from scratch
        step = Classification(config, len(MOTION_CLASSES))
        if init is not None:
            load_into_classifier(step.model, init, new_blocks=config.new_blocks)  # type: ignore[arg-type]
        figures = train(step, config, *labelled, result.with_suffix(".part"))
        figures["top1"] = top1(step, *validation, config.views.size)
        result.write_text(json.dumps(figures))
    return float(json.loads(result.read_text())["top1"])


def train(
    step: TrainStep,
    config: TrainConfig,
    clips: Clips,
    labels: npt.NDArray[np.int64],
    progress: Path,
    *,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The training loop, saved every 50 steps to ``progress``, from where the same call goes on."""
    optimizer = build_optimizer(step.model, config.optimizer)
    done, spent, losses = _resumed(step, optimizer, progress)
    assert config.steps is not None
    peak, final = config.peak_learning_rate, config.schedule.final_learning_rate
    warmup = max(1, config.steps // 20)
    clock = _Clock(spent)
    while done < config.steps if seconds is None else clock.seconds() < seconds:
        share = done / config.steps if seconds is None else min(1.0, clock.seconds() / seconds)
        place = int(share * config.steps)
        set_learning_rate(
            optimizer,
            learning_rate_at(place, total_steps=config.steps, warmup_steps=warmup, peak=peak, final=final),
        )
        loss = step(batch_of(config, clips, labels, done))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(step.model.parameters(), config.optimizer.clip_gradient_norm or float("inf"))
        optimizer.step()
        losses.append(float(loss.detach()))
        done += 1
        if done % STEPS_BETWEEN_SAVES == 0:
            _save(step, optimizer, progress, done, clock.seconds(), losses)
    _save(step, optimizer, progress, done, clock.seconds(), losses)
    return {"steps": done, "seconds": clock.seconds(), "final_loss": float(np.mean(losses[-20:]))}


def batch_of(config: TrainConfig, clips: Clips, labels: npt.NDArray[np.int64], number: int) -> MicroBatch:
    """The batch of a step: epochs of seeded permutations, each view a random crop of its own."""
    positions = number * config.global_batch + np.arange(config.global_batch)
    epochs, places = np.divmod(positions, len(clips))
    orders = {
        epoch: np.random.default_rng([config.seed, epoch]).permutation(len(clips)) for epoch in set(epochs.tolist())
    }
    chosen = [int(orders[epoch][place]) for epoch, place in zip(epochs.tolist(), places, strict=True)]
    rng = np.random.default_rng([config.seed, number, 1])
    margin = clips.shape[2] - config.views.size
    corners = rng.integers(0, margin + 1, (len(chosen), 2))
    views = [
        cropped(clips[index], row, column, config.views.size)
        for index, (row, column) in zip(chosen, corners.tolist(), strict=True)
    ]
    return MicroBatch(
        frames=torch.from_numpy(np.stack(views)),
        labels=torch.from_numpy(labels[chosen]),
        sample_ids=[f"{index}#0" for index in chosen],
        epochs=epochs.tolist(),
        position=int(positions[0]),
        seed=config.seed,
        step=number,
        index=0,
    )


def cropped(clip: Clips, row: int, column: int, size: int) -> Clips:
    """A square of every frame: ``[T, S, S, 3]``."""
    return clip[:, row : row + size, column : column + size]


@torch.inference_mode()
def top1(step: TrainStep, clips: Clips, labels: npt.NDArray[np.int64], size: int) -> float:
    """Share of clips whose centre crop gets its class the highest score."""
    step.model.eval()
    margin = (clips.shape[2] - size) // 2
    right = 0
    for start in range(0, len(clips), 32):
        views = np.stack([cropped(clip, margin, margin, size) for clip in clips[start : start + 32]])
        scores = step.model(normalize_video(torch.from_numpy(views)))
        right += int((scores.argmax(1).numpy() == labels[start : start + 32]).sum())
    return right / len(clips)


class _Clock:
    """Seconds of training, those before a cut included."""

    def __init__(self, spent: float) -> None:
        self._spent, self._started = spent, time.perf_counter()

    def seconds(self) -> float:
        return self._spent + time.perf_counter() - self._started


def _resumed(step: TrainStep, optimizer: torch.optim.Optimizer, progress: Path) -> tuple[int, float, list[float]]:
    if not progress.exists():
        return 0, 0.0, []
    state = torch.load(progress, weights_only=True)
    step.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["done"], state["seconds"], state["losses"]


def _save(
    step: TrainStep, optimizer: torch.optim.Optimizer, progress: Path, done: int, seconds: float, losses: list[float]
) -> None:
    state = {"model": step.model.state_dict(), "optimizer": optimizer.state_dict()}
    progress.parent.mkdir(parents=True, exist_ok=True)
    unfinished = progress.with_suffix(".writing")
    torch.save({**state, "done": done, "seconds": seconds, "losses": losses}, unfinished)
    unfinished.replace(progress)
