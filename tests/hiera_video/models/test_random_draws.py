"""Masks, how many units they keep, and that draws decide everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import (
    drop_path_scales,
    random_keep_mask,
    sample_uniforms,
    validate_keep_mask,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 4), st.integers(3, 400), st.floats(0.0, 0.99))
@settings(max_examples=80, deadline=None)
def test_every_sample_keeps_the_count_of_the_ratio(batch: int, units: int, ratio: float) -> None:
    expected = int(units * (1 - ratio))
    if expected < 3:
        with pytest.raises(ValueError, match="at least 3"):
            random_keep_mask(batch, units, ratio)
        return
    keep_mask = random_keep_mask(batch, units, ratio, seeded(0))
    assert keep_mask.sum(dim=1).tolist() == [expected] * batch
    assert validate_keep_mask(keep_mask, units) == expected


def test_counts_of_the_paper() -> None:
    assert int(random_keep_mask(1, 392, 0.9).sum()) == 39
    assert int(random_keep_mask(1, 49, 0.6).sum()) == 19


def test_a_samples_mask_depends_on_its_seed_alone() -> None:
    batch = random_keep_mask(3, 72, 0.9, seeds=[11, 12, 13])
    other = random_keep_mask(2, 72, 0.9, seeds=[13, 11])
    assert torch.equal(batch[[2, 0]], other)
    assert torch.equal(batch, random_keep_mask(3, 72, 0.9, [seeded(11), seeded(12), seeded(13)]))
    assert not torch.equal(batch[0], batch[1])
    with pytest.raises(ValueError, match="3 seeds or generators for a batch of 2: must be one per sample"):
        random_keep_mask(2, 72, 0.9, seeds=[1, 2, 3])


def test_classifier_draws_drive_drop_path_and_dropout() -> None:
    model = create_model("hiera_test_8x64", drop_path_rate=0.5, head_dropout=0.5)
    pixels = torch.randn(4, 3, 8, 64, 64)
    draws = model.draw(4, seeded(1))
    assert draws.drop_path is not None
    assert draws.head_dropout is not None
    assert draws.drop_path.shape == (5, 2, 4)
    assert torch.equal(model(pixels, draws=draws), model(pixels, draws=draws))
    assert not torch.equal(model(pixels, draws=draws), model(pixels, draws=model.draw(4, seeded(2))))
    model.eval()
    assert torch.equal(model(pixels, draws=draws), model(pixels))


def test_drop_path_scales_drop_or_rescale() -> None:
    noise = torch.tensor([0.0, 0.49, 0.5, 0.99]).expand(1, 2, 4)
    assert drop_path_scales(noise, torch.tensor([0.5])).tolist() == [[[0.0, 0.0, 2.0, 2.0]] * 2]
    assert drop_path_scales(noise, torch.tensor([0.0])).tolist() == [[[1.0] * 4] * 2]


def test_sample_uniforms_come_from_their_own_seeds() -> None:
    rows = sample_uniforms([3, 4], 5)
    assert torch.equal(rows[1], torch.rand(5, generator=seeded(4)))


CLIP = (2, 3, 8, 64, 64)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return create_model("hiera_test_8x64")


@pytest.fixture(scope="module")
def autoencoder() -> torch.nn.Module:
    return create_model("mae_hiera_test_8x64")


@pytest.mark.parametrize(
    ("keep_mask", "message"),
    [
        (torch.ones(2, 9, dtype=torch.bool), r"shape \[2, 9\]: must be \[2, 16\].*random_keep_mask makes one"),
        (torch.ones(3, 16, dtype=torch.bool), r"shape \[3, 16\]: must be \[2, 16\]"),
        (torch.ones(2, 16), r"float32: must be torch.bool, True = visible; use mask.bool\(\)"),
        (torch.eye(2, 16, dtype=torch.bool), "keeps 1 of 16 units: at least 3"),
        (torch.arange(32).view(2, 16) < 20, "between 4 and 16 units: every sample.*same number"),
    ],
)
def test_wrong_mask(classifier: Any, autoencoder: Any, keep_mask: torch.Tensor, message: str) -> None:
    for call in (autoencoder, classifier.features):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(CLIP), keep_mask=keep_mask)
    with pytest.raises(ValueError, match=message):
        validate_keep_mask(keep_mask, 16, batch=2)
