"""The runs of a study: pretraining and probes, floors, tuning and comparison; each is kept in a file of its own."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from hiera_video.metrics.knn_probe import nearest_neighbour_top1
from hiera_video.weights.checkpoint_files import load_model
from tests.studies.clips import Clips, Labels, read_clips
from tests.studies.learning import (
    FinetuneSetting,
    PretrainSetting,
    finetune,
    labelled,
    maps_of,
    pretrain,
    reconstruction_losses,
    ridge_top1,
    top1,
    weights_at,
)
from tests.studies.settings import Study, digest_of

Arm = Literal["scratch", "pretrained"]
ARMS: tuple[Arm, ...] = ("scratch", "pretrained")
TUNED_LABELS = 10
TUNING_SEEDS = (0,)
LABELS_PER_CLASS = (10, 5, 20, 0)
"""In the order in which they are run; 0: all."""
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    arm: Arm
    setting: FinetuneSetting
    per_class: int
    seed: int


@dataclass(frozen=True)
class StudyPaths:
    """Where the data are and where the runs are kept."""

    study: Study
    data: Path
    work: Path

    def labelled_clips(self) -> Clips:
        study = self.study
        return read_clips(self.data, study.labelled, study.centres, study.labelled_cut, self.work / "clips")

    def unlabelled_clips(self) -> Clips:
        study = self.study
        return read_clips(self.data, study.unlabelled, study.centres, study.unlabelled_cut, self.work / "clips")

    def pretraining(self, setting: PretrainSetting, seed: int = 0) -> Path:
        """The folder of a pretraining run."""
        return self.work / f"pretrain-{digest_of(setting)}-{seed}"

    def kept_run(self, run: Run) -> Path:
        """The file of a fine-tuning run."""
        pretraining = self.study.pretraining if run.arm == "pretrained" else None
        return self.work / "runs" / f"{run.arm}-{digest_of((run, self.study.classifier, pretraining))}.json"

    @property
    def weights(self) -> Path:
        """The pretrained weights that are compared."""
        return weights_at(self.pretraining(self.study.pretraining), self.study.pretraining.steps)


def pretrained(paths: StudyPaths, setting: PretrainSetting) -> dict[str, Any]:
    """Pretrain and probe the kept steps; all figures of the run."""
    folder = paths.pretraining(setting)
    kept = folder / "probes.json"
    if not kept.exists():
        clips = paths.unlabelled_clips()
        figures = pretrain(setting, clips, clips.of_split("train"), 0, folder)
        steps = sorted({*setting.kept_at, setting.steps})
        held_out, labelled_clips = clips.of_split("val"), paths.labelled_clips()
        probes = [
            {"step": step, **reconstruction_losses(weights_at(folder, step), clips, held_out, 0),
             **probe(weights_at(folder, step), labelled_clips)}
            for step in steps
        ]  # fmt: skip
        write_json(kept, {"seconds": figures["seconds"], "losses": figures["losses"], "probes": probes})
    return dict(json.loads(kept.read_text()))


def probe(weights: Path, clips: Clips) -> dict[str, float]:
    """Frozen features: ridge regression with few labels and with all, nearest neighbours with all."""
    maps = maps_of(load_model(weights), clips)  # [N, T / 2, h, w, C]
    over_time = maps.mean((2, 3)).flatten(1)  # [N, T / 2 · C]
    train, held_out, numbers = clips.of_split("train"), clips.of_split("val", "test"), torch.from_numpy(clips.labels)
    everywhere = ridges(maps.flatten(1).numpy(), clips)
    return {
        **ridges(over_time.numpy(), clips),
        **{f"{name}_everywhere": share for name, share in everywhere.items()},
        "nearest": nearest_neighbour_top1(over_time[train], numbers[train], over_time[held_out], numbers[held_out]),
    }


def ridges(features: npt.NDArray[np.float32], clips: Clips) -> dict[str, float]:
    """Ridge regression on features ``[N, C]`` with few labels, mean over the seeds, and with all."""
    held_out, labels = clips.of_split("val", "test"), clips.labels
    few = [ridge_top1(features, labels, labelled(clips, TUNED_LABELS, seed), held_out) for seed in SEEDS]
    return {
        "ridge_few": float(np.mean(few)),
        "ridge_all": ridge_top1(features, labels, labelled(clips, 0, 0), held_out),
    }


def floors(paths: StudyPaths) -> dict[str, dict[str, float]]:
    """What ridge regression on grey pixels of half the size gets, of the frames that the model's middle view has."""
    path = paths.work / "floors.json"
    if not path.exists():
        write_json(path, _floors(paths))
    return dict(json.loads(path.read_text()))


def _floors(paths: StudyPaths) -> dict[str, dict[str, float]]:
    clips, (frames, side, _) = paths.labelled_clips(), paths.study.classifier.input_size
    first, corner = (clips.frames.shape[1] - frames) // 2, (clips.frames.shape[2] - side) // 2
    inside = clips.frames[:, first : first + frames, corner : corner + side, corner : corner + side]
    grey = inside.reshape(len(inside), frames, side // 2, 2, side // 2, 2, 3).mean((3, 5, 6), dtype=np.float32)
    kinds = {"middle frame": grey[:, frames // 2], "frame differences": np.diff(grey, axis=1), "all frames": grey}
    return {name: ridges(pixels.reshape(len(grey), -1), clips) for name, pixels in kinds.items()}


def finetuned(paths: StudyPaths, run: Run) -> dict[str, Any]:
    """One run's scores, of the training and validation clips that it has not learned from, and of the test clips."""
    path = paths.kept_run(run)
    if not path.exists():
        clips = paths.labelled_clips()
        train = labelled(clips, run.per_class, run.seed)
        weights = paths.weights if run.arm == "pretrained" else None
        model, figures = finetune(run.setting, paths.study.classifier, clips, train, run.seed, weights)
        scores = {
            "tuning": top1(model, clips, not_learned(clips, train)),
            "test": top1(model, clips, clips.of_split("test")),
        }
        write_json(path, {**asdict(run), **scores, **figures})
    return dict(json.loads(path.read_text()))


def not_learned(clips: Clips, train: Labels) -> Labels:
    """Clips to tune by: those of training and validation whose labels were not given."""
    return np.setdiff1d(clips.of_split("train", "val"), train)


def candidates(study: Study, arm: Arm) -> tuple[FinetuneSetting, ...]:
    return study.scratch if arm == "scratch" else study.pretrained


def tuning_runs(study: Study) -> list[Run]:
    return [
        Run(arm, setting, TUNED_LABELS, seed)
        for seed in TUNING_SEEDS
        for arm in ARMS
        for setting in candidates(study, arm)
    ]


def tuned(paths: StudyPaths, arm: Arm) -> tuple[FinetuneSetting, list[float]]:
    """The best candidate by the clips to tune by, and every candidate's score."""
    settings = candidates(paths.study, arm)
    scores = [
        float(np.mean([finetuned(paths, Run(arm, setting, TUNED_LABELS, seed))["tuning"] for seed in TUNING_SEEDS]))
        for setting in settings
    ]
    return settings[int(np.argmax(scores))], scores


def compared_runs(paths: StudyPaths) -> list[Run]:
    best = {arm: tuned(paths, arm)[0] for arm in ARMS}
    return [Run(arm, best[arm], count, seed) for count in LABELS_PER_CLASS for seed in SEEDS for arm in ARMS]


def write_json(path: Path, content: Any) -> None:
    """The file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
