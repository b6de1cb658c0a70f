"""From decoded frames to the model's input, on the device where the model runs.

Shapes: B batch, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiera_video.augmentation.rand_augment import parse_rand_augment
from hiera_video.models.config import EncoderConfig
from hiera_video.models.random_draws import uniforms
from hiera_video.on_device import constants, to_device
from hiera_video.rules import Checked, Rules

PIXEL_MEAN = (0.45, 0.45, 0.45)
PIXEL_STD = (0.225, 0.225, 0.225)
# Random erasing as SlowFast and timm have it: share of the area, and height to width.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_ATTEMPTS = 10


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """Random changes of the decoded frames, one draw per sample."""

    horizontal_flip: float = 0.5
    """Probability of mirroring a sample; 0 where left and right are labels (SSv2, moving shapes)."""

    def rules(self) -> Rules:
        yield "horizontal_flip", 0.0 <= self.horizontal_flip <= 1.0, "must lie in [0, 1]; use 0.5, or 0 for none"


@dataclass(frozen=True)
class ClassifierAugmentConfig(AugmentConfig):
    """Random changes in fine-tuning; the random crop is drawn when the video is decoded (`view.crop_scale`)."""

    rand_augment: str = ""
    """RandAugment by timm's name, with `inc1`: `rand-m7-mstd0.5-inc1` on Kinetics and SSv2 (paper Tab. 11b); '' for
    none."""
    random_erasing: float = 0.0
    """Probability that noise replaces one box, the same in all frames; not confirmed by the paper, 0.25 in SlowFast."""

    def rules(self) -> Rules:
        yield from super().rules()
        if self.rand_augment:
            try:
                parse_rand_augment(self.rand_augment)
            except ValueError as error:
                raise ValueError(f"rand_augment={error}; use rand-m7-mstd0.5-inc1, or '' for none") from error
        yield "random_erasing", 0.0 <= self.random_erasing <= 1.0, "must lie in [0, 1]; use 0.25, or 0 for none"


def model_input(frames: Tensor, config: EncoderConfig) -> Tensor:
    """What a model takes: uint8 frames ``[B, T, H, W, 3]`` normalised by its config, ``[B, 3, T, H, W]``.

    A model of images takes ``[B, 3, H, W]``: views of one frame lose the axis of time here, and only here.

    Raises:
        ValueError: another type or layout.
    """
    if not config.is_video and frames.ndim == 5:
        if frames.shape[1] != 1:
            raise ValueError(f"views have {frames.shape[1]} frames: a model of images takes 1; give it images")
        frames = frames[:, 0]
    return normalize_video(frames, config.pixel_mean, config.pixel_std)


def normalize_video(frames: Tensor, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD) -> Tensor:
    """uint8 frames ``[B, T, H, W, 3]`` → float32 ``[B, 3, T, H, W]``; by default mean 0.45, deviation 0.225 (SlowFast).

    Images go through as ``[B, H, W, 3]`` → ``[B, 3, H, W]``.

    Raises:
        ValueError: another type or layout.
    """
    if frames.dtype != torch.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}: must be uint8 [B, T, H, W, 3] (or [B, H, W, 3]), values "
            "0 to 255, colours last; convert them, or skip this step if they are normalised already"
        )
    pixels = frames.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format)
    scale = [1 / (255 * deviation) for deviation in std]
    shift = [value / deviation for value, deviation in zip(mean, std, strict=True)]
    return pixels.mul_(_by_colour(scale, pixels)).sub_(_by_colour(shift, pixels))


def denormalize_video(pixels: Tensor, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD) -> Tensor:
    """The inverse of `normalize_video`, clamped: float ``[B, 3, T, H, W]`` → uint8 ``[B, T, H, W, 3]``."""
    frames = (pixels.float() * _by_colour(std, pixels) + _by_colour(mean, pixels)) * 255
    return frames.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)


def _by_colour(values: Sequence[float], pixels: Tensor) -> Tensor:
    """A number for each of the colours ``[3]`` beside pixels ``[B, 3, ...]``."""
    return constants(values, pixels.device).view(1, -1, *[1] * (pixels.ndim - 2))


def augment(frames: Tensor, config: AugmentConfig, flip_noise: Tensor | None = None) -> Tensor:
    """Random changes of decoded frames, uint8 ``[B, (T), H, W, 3]``; the same for all frames of a sample.

    Before they are normalised (`model_input`), which changes no pixel otherwise: bytes are a quarter of the memory.

    Args:
        flip_noise: uniform numbers ``[B]``, for instance `sample_uniforms(seeds, 1)[:, 0]`; drawn when missing.
    """
    if config.horizontal_flip == 0.0:
        return frames
    if flip_noise is None:
        flip_noise = torch.rand(frames.shape[0])
    mirrored = (flip_noise < config.horizontal_flip).tolist()
    return torch.stack([sample.flip(-2) if flip else sample for sample, flip in zip(frames, mirrored, strict=True)])


def random_erase(pixels: Tensor, probability: float, seeds: Sequence[int]) -> Tensor:
    """Put normal noise into one box of some samples (arXiv 1708.04896), at the same place in all frames.

    Args:
        pixels: normalised, ``[B, 3, (T), H, W]``; stays as it is.
        seeds: one per sample.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    height, width = pixels.shape[-2:]
    boxes = [_erased_box(height, width, probability, generator) for generator in generators]
    if not any(boxes):
        return pixels
    erased = pixels.clone()
    for sample, box, generator in zip(erased, boxes, generators, strict=True):
        if box is not None:
            hole = sample[..., box[0], box[1]]
            hole.copy_(to_device(torch.randn(hole.shape, generator=generator), hole.device))
    return erased


def _erased_box(height: int, width: int, probability: float, generator: torch.Generator) -> tuple[slice, slice] | None:
    """Rows and columns of the box; None with the complementary probability, or when ten boxes were too large."""
    if float(uniforms((1,), generator)) >= probability:
        return None
    for _ in range(ERASING_ATTEMPTS):
        area, aspect, top, left = uniforms((4,), generator).tolist()
        pixels = height * width * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
        ratio = math.exp(math.log(ERASED_ASPECT[0]) + aspect * math.log(ERASED_ASPECT[1] / ERASED_ASPECT[0]))
        rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if rows < height and columns < width:
            first_row, first_column = int(top * (height - rows + 1)), int(left * (width - columns + 1))
            return slice(first_row, first_row + rows), slice(first_column, first_column + columns)
    return None
