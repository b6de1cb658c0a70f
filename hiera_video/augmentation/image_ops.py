"""RandAugment's operations on batches of clips, on the device where the clips are.

Each gives what Pillow gives for every frame (timm's RandAugment is defined by Pillow's operations), within one grey
level; kornia's operations of the same names differ from Pillow's in rounding, borders and histograms.

Shapes: N clips of T frames; frames are uint8 ``[N, T, H, W, 3]``, arguments float ``[N]``: one for all frames of a
clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.on_device import constants

GREY = (128.0, 128.0, 128.0)
"""Where a moved frame leaves no pixel: red, green, blue (timm without a mean, as SlowFast has it)."""
LUMA = (19595, 38470, 7471)
"""Pillow's weights of red, green and blue in 65536ths."""


def auto_contrast(frames: Tensor, _: Tensor) -> Tensor:
    """Each channel of each frame stretched to 0 ... 255; a channel of one value stays."""
    pixels = frames.float()
    lowest, highest = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    scale = torch.where(highest > lowest, 255.0 / (highest - lowest), 1.0)
    offset = torch.where(highest > lowest, lowest, 0.0)
    return _to_uint8((pixels - offset) * scale + 1e-4)  # truncated like Pillow's, which computes in float64


def equalize(frames: Tensor, _: Tensor) -> Tensor:
    """A flat histogram for each channel of each frame, by Pillow's whole-number table."""
    clips, steps, height, width, channels = frames.shape
    values = frames.movedim(-1, 2).reshape(clips * steps * channels, height * width).long()
    counts = values.new_zeros(len(values), 256).scatter_add_(1, values, torch.ones_like(values))
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = counts.cumsum(1) - counts
    table = (step // 2 + before) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=frames.device))
    equal = table.gather(1, values).to(torch.uint8)
    return equal.view(clips, steps, channels, height, width).movedim(2, -1).contiguous()


def invert(frames: Tensor, _: Tensor) -> Tensor:
    """The negative."""
    return 255 - frames


def posterize(frames: Tensor, bits: Tensor) -> Tensor:
    """Only the highest ``bits`` bits of every value; 0 is black."""
    step = 2.0 ** (8 - _along(bits, frames))
    return _to_uint8(torch.floor(frames / step) * step)


def solarize(frames: Tensor, threshold: Tensor) -> Tensor:
    """The negative of all values from ``threshold`` on."""
    return torch.where(frames < _along(threshold, frames), frames, 255 - frames)


def solarize_add(frames: Tensor, added: Tensor) -> Tensor:
    """``added`` on top of all values below 128."""
    return torch.where(frames < 128, _to_uint8(frames + _along(added, frames)), frames)


def color(frames: Tensor, factor: Tensor) -> Tensor:
    """Between grey (0) and the image (1), and beyond."""
    return _blend(_grey(frames), frames, factor)


def contrast(frames: Tensor, factor: Tensor) -> Tensor:
    """Between the frame's mean grey level (0) and the image (1), and beyond."""
    mean = torch.floor(_grey(frames).mean((2, 3), keepdim=True) + 0.5)
    return _blend(mean, frames, factor)


def brightness(frames: Tensor, factor: Tensor) -> Tensor:
    """Between black (0) and the image (1), and beyond."""
    return _blend(frames.new_zeros(()), frames, factor)


def sharpness(frames: Tensor, factor: Tensor) -> Tensor:
    """Between a smoothed image (0) and the image (1), and beyond; the border rows and columns stay."""
    pixels = frames.movedim(-1, 2).float().flatten(0, 1)  # [N * T, 3, H, W]
    sums = functional.avg_pool2d(pixels, 3, stride=1, divisor_override=1) + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = torch.floor(sums / 13 + 0.5)
    return _blend(smooth.view(*frames.shape[:2], *smooth.shape[1:]).movedim(2, -1), frames, factor)


def rotate(frames: Tensor, degrees: Tensor, fill: Sequence[float] = GREY) -> Tensor:
    """Anticlockwise around the middle."""
    height, width = frames.shape[2:4]
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    across = (1 - cosine) * width / 2 + sine * height / 2
    down = (1 - cosine) * height / 2 - sine * width / 2
    return move(frames, torch.stack([cosine, -sine, across, sine, cosine, down], 1), fill=fill)


def moved_by(entry: int, axis: int | None = None) -> Callable[..., Tensor]:
    """Moves frames by one entry of `move`'s matrix; with an axis of the frames, by a share of its length."""

    def operation(frames: Tensor, values: Tensor, fill: Sequence[float] = GREY) -> Tensor:
        matrix = constants([1.0, 0, 0, 0, 1, 0], values.device).repeat(len(values), 1)
        matrix[:, entry] = values if axis is None else values * frames.shape[axis]
        return move(frames, matrix, fill=fill)

    return operation


def move(frames: Tensor, matrix: Tensor, interpolation: str = "bicubic", fill: Sequence[float] = GREY) -> Tensor:
    """Take the pixel at (x, y) from (a·x + b·y + c, d·x + e·y + f); outside of the image it has the colour ``fill``.

    Bicubic, as SlowFast has it (timm by itself tosses between that and bilinear); torch's kernel has the parameter
    -0.75 where Pillow's has -1, so sharp edges differ by some grey levels.

    Args:
        matrix: ``[N, 6]``, a to f, in pixels from the image's upper left corner.
    """
    clips, steps, height, width, channels = frames.shape
    columns = torch.arange(width, device=frames.device) + 0.5
    rows = (torch.arange(height, device=frames.device) + 0.5)[:, None]
    a, b, c, d, e, f = matrix.to(frames.device, torch.float32).T[:, :, None, None]
    x, y = a * columns + b * rows + c, d * columns + e * rows + f  # [N, H, W]
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], -1)
    planes = frames.movedim(-1, 2).reshape(clips, steps * channels, height, width).float()
    moved = functional.grid_sample(planes, grid, mode=interpolation, padding_mode="border", align_corners=False)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    outside = constants(fill, frames.device).repeat(steps).view(1, -1, 1, 1)
    moved = torch.where(inside[:, None], moved + 1e-3, outside)  # truncated like Pillow's, which computes in float64
    return _to_uint8(moved).view(clips, steps, channels, height, width).movedim(2, -1).contiguous()


def _grey(frames: Tensor) -> Tensor:
    """Pillow's grey levels, whole numbers: float ``[N, T, H, W, 1]``."""
    weights = constants(LUMA, frames.device, torch.int32)
    return ((frames.int() * weights).sum(-1, keepdim=True).add(2**15) >> 16).float()


def _blend(base: Tensor, frames: Tensor, factor: Tensor) -> Tensor:
    return _to_uint8(base + _along(factor, frames) * (frames - base.float()))


def _along(values: Tensor, frames: Tensor) -> Tensor:
    """``[N]`` → ``[N, 1, 1, 1, 1]`` beside the frames."""
    return values.to(frames.device, torch.float32).view(-1, 1, 1, 1, 1)


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
