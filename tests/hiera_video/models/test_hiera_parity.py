"""The same weights give the public code's numbers: every preset, shrunk in depth and size, not in structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hiera_video.models.presets import create_model, model_config, model_names
from hiera_video.models.random_draws import random_keep_mask
from hiera_video.weights.checkpoint_files import load_official, official_state_dict
from hiera_video.weights.key_mapping import to_official
from tests.support.official import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    official_logits,
    official_model,
    preset_arguments,
    relative_difference,
    uninitialised,
)

PUBLIC_PRESETS = [name for name in model_names() if "demo" not in name and "test" not in name]
CLASSIFIERS = [name for name in PUBLIC_PRESETS if not name.startswith("mae_")]
AUTOENCODERS = [name for name in PUBLIC_PRESETS if name.startswith("mae_")]


def small_input(name: str) -> tuple[int, ...]:
    return (6, 64, 64) if "16x" in name else (96, 64)


def peers(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    shared = {"input_size": small_input(name), "stages": (1, 1, 2, 1), **arguments}
    theirs = official_model(name, **shared)
    with uninitialised():
        ours = create_model(name, **shared, **({"mask_ratio": 0.5} if name.startswith("mae_") else {}))
    load_official(ours, theirs.state_dict())
    return ours.eval(), theirs.eval()


def pixels(name: str) -> Tensor:
    return torch.randn(2, 3, *small_input(name), generator=torch.Generator().manual_seed(1))


def half_mask(model: nn.Module, seed: int = 2) -> Tensor:
    return random_keep_mask(2, model.num_mask_units, 0.5, torch.Generator().manual_seed(seed))


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    own = to_official({name: parameter.grad for name, parameter in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            assert relative_difference(own[name], parameter.grad) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("name", PUBLIC_PRESETS)
def test_preset_has_the_public_arguments(name: str) -> None:
    config = model_config(name)
    for key, value in preset_arguments(name).items():
        if hasattr(config, key):
            assert getattr(config, key) == value, key


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_logits_features_and_gradients(name: str) -> None:
    ours, theirs = peers(name)
    video = pixels(name)
    expected = official_logits(theirs, video)
    logits = ours(video)
    assert relative_difference(logits, expected) < TOLERANCE
    _, maps = theirs(video, return_intermediates=True)
    for own, public in zip(ours.features(video), maps, strict=True):
        assert relative_difference(own, public) < TOLERANCE
    logits.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_base_plus_16x224"])
def test_masked_features(name: str) -> None:
    ours, theirs = peers(name)
    video, keep_mask = pixels(name), half_mask(ours)
    _, maps = theirs(video, mask=keep_mask, return_intermediates=True)
    for own, public in zip(ours.features(video, keep_mask), maps, strict=True):
        assert relative_difference(own, public) < TOLERANCE


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_loss_prediction_target_and_gradients(name: str) -> None:
    ours, theirs = peers(name, decoder_depth=2)
    video, keep_mask = pixels(name), half_mask(ours)
    loss, prediction, target, _ = theirs(video, mask=keep_mask)
    output = ours(video, mask_ratio=0.5, keep_mask=keep_mask)
    assert relative_difference(output.loss, loss) < TOLERANCE
    assert relative_difference(output.prediction, prediction) < TOLERANCE
    assert relative_difference(output.target, target) < TOLERANCE
    output.loss.backward()
    loss.backward()
    assert_same_gradients(ours, theirs)


def test_random_masks_keep_as_many_units_as_the_public_code() -> None:
    ours, theirs = peers("mae_hiera_base_16x224")
    video = pixels("mae_hiera_base_16x224")
    for ratio in (0.1, 0.5, 0.75):
        assert ours(video, mask_ratio=ratio).keep_mask.sum() == theirs(video, mask_ratio=ratio)[3].sum()


def test_full_size_base_video_at_the_papers_ratio() -> None:
    name = "mae_hiera_base_16x224"
    ours, theirs = peers(name, input_size=(16, 224, 224), stages=(1, 1, 1, 1), decoder_depth=1)
    video = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(3))
    output = ours(video, mask_ratio=0.9)
    assert int(output.keep_mask.sum()) == 39
    with torch.no_grad():
        loss, prediction, _, _ = theirs(video, mask=output.keep_mask)
    assert relative_difference(output.loss, loss) < TOLERANCE
    assert relative_difference(output.prediction, prediction) < TOLERANCE


def test_official_names_survive_the_round_trip() -> None:
    for name in ("hiera_base_16x224", "mae_hiera_tiny_224"):
        ours, theirs = peers(name)
        exported = official_state_dict(ours)
        assert exported.keys() == theirs.state_dict().keys()
        theirs.load_state_dict(exported, strict=True)
