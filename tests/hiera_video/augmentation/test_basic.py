"""From frames to input and back, flips, and random erasing."""

from __future__ import annotations

import pytest
import torch

from hiera_video.augmentation.basic import (
    AugmentConfig,
    ClassifierAugmentConfig,
    augment,
    denormalize_video,
    model_input,
    normalize_video,
    random_erase,
)
from hiera_video.models.presets import model_config


def test_normalisation_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(2, 4, 16, 16, 3)
    pixels = normalize_video(frames)
    assert pixels.shape == (2, 3, 4, 16, 16)
    assert pixels.is_contiguous()
    expected = (frames.double().movedim(-1, 1) / 255 - 0.45) / 0.225
    torch.testing.assert_close(pixels.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(denormalize_video(pixels), frames)
    assert normalize_video(frames[:, 0]).shape == (2, 3, 16, 16)


def test_a_models_config_normalises_its_input() -> None:
    frames = torch.randint(0, 256, (2, 1, 8, 8, 3), dtype=torch.uint8)
    config = model_config("hiera_tiny_224")
    pixels = model_input(frames, config)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(pixels, (frames[:, 0].permute(0, 3, 1, 2) / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(model_input(frames[:, 0], config), pixels)
    assert torch.equal(denormalize_video(pixels, config.pixel_mean, config.pixel_std), frames[:, 0])
    videos = model_config("hiera_base_16x224")
    assert torch.equal(model_input(frames, videos), normalize_video(frames))
    assert (videos.pixel_mean, videos.pixel_std) == ((0.45,) * 3, (0.225,) * 3)


def test_frames_that_are_no_frames() -> None:
    for frames in (
        torch.zeros(2, 8, 64, 64, 3),
        torch.zeros(2, 3, 8, 64, 64, dtype=torch.uint8),
        torch.zeros(3).byte(),
    ):
        with pytest.raises(ValueError, match=r"must be uint8 \[B, T, H, W, 3\]"):
            normalize_video(frames)


def test_flip_follows_its_draws() -> None:
    frames = torch.randint(0, 256, (3, 2, 4, 5, 3), dtype=torch.uint8)
    flipped = augment(frames, AugmentConfig(horizontal_flip=0.5), torch.tensor([0.2, 0.5, 0.49]))
    assert torch.equal(flipped[[0, 2]], frames[[0, 2]].flip(-2))
    assert torch.equal(flipped[1], frames[1])
    assert torch.equal(normalize_video(flipped)[0], normalize_video(frames)[0].flip(-1))
    assert augment(frames, AugmentConfig(horizontal_flip=0.0)) is frames
    for several in (frames, frames[:, 0]):  # images have no axis of time
        assert torch.equal(augment(several, AugmentConfig(horizontal_flip=1.0)), several.flip(-2))


def test_erasing_puts_one_box_of_noise_at_the_same_place_of_all_frames() -> None:
    pixels = torch.full((200, 3, 2, 40, 60), 9.0)
    erased = random_erase(pixels, 0.25, range(200))
    assert float(pixels.min()) == 9.0
    changed = erased != 9.0  # normal noise never hits it
    touched = changed.flatten(1).any(1)
    assert touched.float().mean() == pytest.approx(0.25, abs=0.1)
    assert torch.equal(changed[:, 0, 0], changed[:, 2, 1])
    for sample in torch.nonzero(touched)[:, 0]:
        rows, columns = changed[sample, 0, 0].any(1).sum(), changed[sample, 0, 0].any(0).sum()
        assert changed[sample, 0, 0].sum() == rows * columns
        assert 0.015 < rows * columns / 2400 < 0.36
        assert 0.25 < rows / columns < 4
    noise = erased[changed]
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(erased[touched][0, 0, 0], erased[touched][0, 0, 1])  # each frame has its own noise


def test_erasing_depends_on_the_samples_seed_alone() -> None:
    pixels = torch.zeros(4, 3, 2, 16, 16)
    together = random_erase(pixels, 1.0, [5, 6, 7, 8])
    assert torch.equal(random_erase(pixels[:1], 1.0, [7])[0], together[2])
    assert random_erase(pixels, 0.0, [5, 6, 7, 8]) is pixels


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (AugmentConfig, {"horizontal_flip": 2.0}, r"horizontal_flip=2.0: must lie in \[0, 1\]"),
        (ClassifierAugmentConfig, {"random_erasing": -0.1}, r"random_erasing=-0.1: must lie in \[0, 1\]"),
        (
            ClassifierAugmentConfig,
            {"rand_augment": "augmix"},
            "rand_augment=augmix: must be a `rand` policy.*use rand-m7",
        ),
    ],
)
def test_wrong_settings(config: type, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**arguments)
