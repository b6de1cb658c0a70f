"""The same weights give the public classifier's numbers: every preset, shrunk in depth and size, not in structure."""

from __future__ import annotations

import pytest

from tests.support.official import (
    PUBLIC_PRESETS,
    TOLERANCE,
    assert_same_gradients,
    half_mask,
    official_logits,
    peers,
    relative_difference,
    small_pixels,
)

CLASSIFIERS = [name for name in PUBLIC_PRESETS if not name.startswith("mae_")]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_logits_features_and_gradients(name: str) -> None:
    ours, theirs = peers(name)
    video = small_pixels(name)
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
    video, keep_mask = small_pixels(name), half_mask(ours)
    _, maps = theirs(video, mask=keep_mask, return_intermediates=True)
    for own, public in zip(ours.features(video, keep_mask), maps, strict=True):
        assert relative_difference(own, public) < TOLERANCE
