"""Soft targets, mixup and cutmix: what is drawn, and that pixels and targets agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hiera_video.augmentation.mixup import (
    Mix,
    MixConfig,
    draw_mix,
    mix_pixels,
    mix_targets,
    soft_cross_entropy,
    soft_targets,
)

BOTH = MixConfig(mixup=0.8, cutmix=1.0)


def videos(batch: int) -> list[str]:
    """A video of its own for each sample."""
    return [f"video{number}" for number in range(batch)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(batch: int = 4, height: int = 20, width: int = 30) -> Tensor:
    """Pixels ``[B, 3, T, H, W]`` that say which sample they belong to."""
    return torch.arange(batch).float().view(-1, 1, 1, 1, 1).expand(batch, 3, 2, height, width).contiguous()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_targets_hold_the_share_of_the_pixels(seed: int, batch: int) -> None:
    """Every sample consists of its number, so the mixed pixels show the samples in them and their shares."""
    mix = draw_mix(BOTH, videos(batch), 20, 30, generator(seed))
    assert mix is not None
    assert (mix.partners != torch.arange(batch)).all()
    assert sorted(mix.partners.tolist()) == list(range(batch))
    mixed = mix_pixels(numbered(batch), mix)
    targets = mix_targets(torch.eye(batch), mix)
    torch.testing.assert_close(targets.sum(1), torch.ones(batch))
    expected = (targets * torch.arange(batch)).sum(1)
    torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_partners_are_of_other_videos(seed: int, shown: list[int]) -> None:
    """However often a video comes; each sample is used once where that is possible."""
    mix = draw_mix(BOTH, [f"v{number}" for number in shown], 20, 30, generator(seed))
    if len(set(shown)) == 1:
        assert mix is None
        return
    assert mix is not None
    assert all(shown[partner] != video for video, partner in zip(shown, mix.partners.tolist(), strict=True))
    if 2 * max(shown.count(video) for video in shown) <= len(shown):
        assert sorted(mix.partners.tolist()) == list(range(len(shown)))


def test_every_other_video_can_be_the_partner() -> None:
    mixes = [draw_mix(BOTH, ["a", "a", "b", "b", "c", "c"], 8, 8, generator(seed)) for seed in range(100)]
    assert {int(mix.partners[0]) for mix in mixes if mix} == {2, 3, 4, 5}


def test_shares_come_from_the_beta_distribution() -> None:
    draws = [draw_mix(MixConfig(mixup=0.8), videos(2), 8, 8, generator(seed)) for seed in range(2000)]
    shares = np.array([draw.share for draw in draws if draw])
    assert len(shares) == 2000
    assert all(draw.box is None for draw in draws if draw)
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(0.25 / 2.6, abs=0.006)  # 1 / (4 (2 alpha + 1))


def test_cutmix_covers_the_drawn_area_where_the_border_does_not_cut() -> None:
    inside = [
        mix
        for seed in range(1200)
        if (mix := draw_mix(MixConfig(cutmix=1.0), videos(2), 224, 224, generator(seed))) and mix.box
        if all(side.start > 0 and side.stop < 224 for side in mix.box)
    ]
    assert len(inside) > 100
    for mix in inside:
        assert mix.box is not None
        height, width = (side.stop - side.start for side in mix.box)
        assert height == width
        assert 1 - mix.share == pytest.approx(height**2 / 224**2)


def test_every_micro_batch_is_mixed_and_half_by_cutmix() -> None:
    draws = [draw_mix(BOTH, videos(4), 8, 8, generator(seed)) for seed in range(1000)]
    assert None not in draws
    assert np.mean([draw is not None and draw.box is not None for draw in draws]) == pytest.approx(0.5, abs=0.05)


def test_nothing_to_mix() -> None:
    pixels, targets = numbered(), torch.eye(4)
    assert draw_mix(MixConfig(), videos(4), 8, 8, generator(0)) is None
    assert draw_mix(BOTH, videos(1), 8, 8, generator(0)) is None
    assert mix_pixels(pixels, None) is pixels
    assert mix_targets(targets, None) is targets


def test_the_same_generator_gives_the_same_mix() -> None:
    first, again, other = (draw_mix(BOTH, videos(6), 50, 50, generator(seed)) for seed in (3, 3, 4))
    assert isinstance(first, Mix)
    assert isinstance(again, Mix)
    assert torch.equal(first.partners, again.partners)
    assert first[1:] == again[1:]
    assert other is None or other[1:] != first[1:]


def test_soft_targets_are_label_smoothing() -> None:
    logits, labels = torch.randn(5, 7, generator=generator(0)), torch.tensor([0, 3, 6, 6, 1])
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft_targets(labels, 7, 0.1)), expected)


def test_unlabelled_samples_count_for_nothing() -> None:
    logits, labels = torch.randn(3, 7, generator=generator(0)), torch.tensor([2, -1, 4])
    expected = functional.cross_entropy(logits[[0, 2]], labels[[0, 2]], label_smoothing=0.2)
    torch.testing.assert_close(soft_cross_entropy(logits, soft_targets(labels, 7, 0.2)), expected)
    assert float(soft_cross_entropy(logits, soft_targets(torch.tensor([-1, -1, -1]), 7, 0.2))) == 0.0


@pytest.mark.parametrize("bad", [{"mixup": -0.1}, {"cutmix": -1.0}])
def test_bad_mixing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MixConfig(**bad)
