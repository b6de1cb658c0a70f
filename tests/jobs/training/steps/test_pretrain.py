"""What a micro-batch becomes in pretraining: draws, the loss, what validation measures. No Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.pretrain import MaskedAutoencoding, PretrainConfig, PretrainPhase

SMALL = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "global_batch=4",
         "micro_batch=2", "precision=fp32", "steps=3"]  # fmt: skip


def config(*more: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", ["data=d", "output=o", *SMALL, *more])


def step(*more: str) -> MaskedAutoencoding:
    torch.manual_seed(0)
    return PretrainPhase(config(*more)).build_step(load_init=False)


def batch(number: int = 0, seed: int = 5) -> MicroBatch:
    frames = torch.randint(0, 256, (2, 8, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    labels = torch.full((2,), -1)
    return MicroBatch(frames, labels, ["1#0", "2#0"], [0, 0], position=0, seed=seed, step=number, index=0)


def test_the_loss_is_a_function_of_the_batch_alone() -> None:
    model = step("model_overrides.drop_path_rate=0.5")
    first = model(batch())
    torch.manual_seed(99)
    torch.rand(17)
    assert torch.equal(model(batch()), first)
    assert not torch.equal(model(batch(seed=6)), first)
    assert not torch.equal(model(batch(number=1)), first)


def test_validation_measures_the_same_in_every_step() -> None:
    model = step().eval()
    measured = [model.measure(replace(batch(number), epochs=[0, 0])) for number in (0, 7)]
    assert measured[0] == measured[1]
    features = model.embed(batch())
    assert features is not None
    assert features.shape[0] == 2


def test_a_picture_needs_pixels_of_every_hidden_token(tmp_path: Path) -> None:
    frames = batch().frames
    assert step().picture(frames, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert not step("picture_clips=0").picture(frames, tmp_path / "none.png")
    assert not config("model_overrides.target=hog").has_picture


def test_a_classifiers_figure_is_not_pretrainings() -> None:
    with pytest.raises(UserError, match=r"validation\.best_by=top1: must be loss"):
        config("validation.best_by=top1")


def test_images_are_pretrained_at_their_own_mask_ratio(tmp_path: Path) -> None:
    decoder = "model_overrides={decoder_embed_dim: 16, decoder_depth: 1, decoder_num_heads: 2}"
    small = ["model=mae_hiera_test_96", "global_batch=2", "micro_batch=2", "precision=fp32", decoder]
    keys = ["in1k_tiny", "data=d", "output=o", *small]
    model = PretrainPhase(load_config(PretrainConfig, "pretrain", keys)).build_step(load_init=False)
    frames = torch.randint(0, 256, (2, 1, 96, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = replace(batch(), frames=frames)
    loss = model(images)
    loss.backward()
    assert torch.isfinite(loss)
    assert set(model.measure(images)) == {"loss"}
    features = model.embed(images)
    assert features is not None
    assert len(features) == 2
    assert model.picture(frames, tmp_path / "picture.png")
