"""Views, the mean frame, probes, and learning that continues where it was cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hiera_video.models.config import HieraConfig, MaskedAutoencoderConfig
from hiera_video.models.presets import PRESETS
from hiera_video.weights.checkpoint_files import save_model
from tests.studies import learning
from tests.studies.clips import Clips
from tests.studies.learning import (
    PretrainSetting,
    labelled,
    pretrain,
    reconstruction_losses,
    ridge_top1,
    views_of,
    weights_at,
)

MAE = PRESETS["mae_hiera_test_8x64"]
CLASSIFIER = PRESETS["hiera_test_8x64"]
assert isinstance(MAE, MaskedAutoencoderConfig)
assert isinstance(CLASSIFIER, HieraConfig)


def moving(count: int = 8) -> Clips:
    """Clips of 10 frames of 66 pixels, in each of which a bright bar moves right (0) or left (1)."""
    frames = np.zeros((count, 10, 66, 66, 3), np.uint8)
    labels = np.arange(count) % 2
    for number, label in enumerate(labels):
        for time in range(10):
            column = 6 * time if label == 0 else 60 - 6 * time
            frames[number, time, :, column : column + 6] = 255
    splits = ("train",) * (count - 2) + ("val", "test")
    return Clips(frames, labels, ("right", "left"), splits)


def test_the_middle_view_is_the_middle_in_space_and_time() -> None:
    clips = moving()
    (view,) = views_of(clips, [0], (8, 64, 64), None)
    assert torch.equal(view, torch.from_numpy(clips.frames[0, 1:9, 1:65, 1:65].copy()))


def test_random_views_are_parts_of_their_clip_and_functions_of_the_draw() -> None:
    clips = moving()
    first, again, other = (views_of(clips, [3] * 6, (8, 64, 64), np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    parts = [
        clips.frames[3, start : start + 8, top : top + 64, left : left + 64]
        for start in range(3) for top in range(3) for left in range(3)
    ]  # fmt: skip
    assert all(any(np.array_equal(view, part) for part in parts) for view in first.numpy())


def test_a_still_clip_is_predicted_by_its_mean_frame_and_a_moving_one_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "model.safetensors"
    save_model(weights, learning.MaskedAutoencoder(MAE))
    clips = moving()
    numbers = np.arange(4)
    assert reconstruction_losses(weights, clips, numbers, 0)["mean_frame"] > 0.1
    still = Clips(np.repeat(clips.frames[:, :1], 10, axis=1), clips.labels, clips.classes, clips.splits)
    assert reconstruction_losses(weights, still, numbers, 0)["mean_frame"] < 1e-9


def test_ridge_regression_separates_what_is_separable_and_no_noise() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(400) % 4
    noise = draw.normal(size=(400, 8)).astype(np.float32)
    telling = noise + 9 * np.eye(8, dtype=np.float32)[labels]
    train, held_out = np.arange(200), np.arange(200, 400)
    assert ridge_top1(telling, labels, train, held_out) > 0.95
    assert ridge_top1(noise, labels, train, held_out) < 0.4


def test_labels_are_of_training_clips_and_equally_many_of_each_class() -> None:
    clips = moving(30)
    chosen = labelled(clips, 3, 0)
    assert sorted(clips.labels[chosen]) == [0, 0, 0, 1, 1, 1]
    assert set(chosen) <= set(clips.of_split("train"))
    assert list(labelled(clips, 0, 0)) == list(clips.of_split("train"))
    assert list(labelled(clips, 3, 1)) != list(chosen)


def test_pretraining_continues_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, setting = moving(), PretrainSetting(MAE, steps=6, batch=4, kept_at=(0, 3))
    numbers = clips.of_split("train")
    whole = pretrain(setting, clips, numbers, 0, tmp_path / "whole")
    monkeypatch.setattr(learning, "STEPS_BETWEEN_SAVES", 2)
    monkeypatch.setattr(learning, "views_of", _Cut(after=5))
    with pytest.raises(InterruptedError):
        pretrain(setting, clips, numbers, 0, tmp_path / "cut")
    monkeypatch.setattr(learning, "views_of", views_of)
    assert pretrain(setting, clips, numbers, 0, tmp_path / "cut")["losses"] == whole["losses"]
    for step in (0, 3, 6):
        cut, uncut = (load_file(weights_at(tmp_path / name, step)) for name in ("cut", "whole"))
        assert all(torch.equal(cut[name], uncut[name]) for name in uncut)


class _Cut:
    """`views_of` that ends the process after some calls."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, *arguments: object) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return views_of(*arguments)  # type: ignore[arg-type]
