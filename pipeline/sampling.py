"""Which frames and which part of the picture a view takes: pure functions of numbers and a generator.

Sources: SlowFast's datasets (uniform sampling, crops), VideoMAE's SSv2 test clips, MAE-ST's repeated sampling. Legend:
T frames of a view, N frames of the video. Frame indices are int64 ``[T]``, ascending, within ``[0, N)``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.media import Media
from pipeline.seeds import derive_seed

Indices = npt.NDArray[np.int64]

SLOWFAST_FPS = 30.0
Interpolation = Literal["bilinear", "bicubic"]


class CropBox(NamedTuple):
    """A part of the picture, in pixels of the picture as shown."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class DrawConfig:
    """How training views are drawn from a clip; their shape is the model's."""

    frame_stride: int = 4
    """Frames from one sampled frame to the next, at 30 frames per second for `uniform`."""

    sampling: Literal["uniform", "stride", "segments"] = "uniform"
    """`uniform`: SlowFast's, converts frame rates; `stride`: every frame_stride-th stored frame; `segments`: one frame
    from each of T equal parts (SSv2)."""

    repeats: int = 1
    """Views of each clip per epoch, from one decode (recipes: 4 in pretraining, 2 in fine-tuning)."""

    balance_classes: bool = False
    """Clips of small classes several times per epoch, each time with other draws, so that every class comes as
    often as the largest; for small labelled sets."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that the random crop takes, lowest and highest."""

    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    """Width to height of the random crop, lowest and highest."""

    def __post_init__(self) -> None:
        _at_least_one(self, "frame_stride", "repeats")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={[low, high]}: must be 0 < lowest <= highest <= 1; for example [0.5, 1]")
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise ValueError(f"crop_aspect={[low, high]}: must be 0 < lowest <= highest; for example [0.75, 1.333]")


@dataclasses.dataclass(frozen=True)
class ViewConfig(DrawConfig):
    """What a training view is."""

    num_frames: int = 16
    """Frames of a view (T)."""

    size: int = 224
    """Height and width of a view in pixels."""

    clips_side_by_side: int = 1
    """Clips whose first views come before their second ones, and so on; with 1 the repeats of a clip come together,
    from one decode."""

    media: Media = "video"
    """Of what a view is; a view of an image has one frame."""

    interpolation: Interpolation = "bilinear"
    """How an image is resized, always with antialiasing; videos are resized by area or bilinearly."""

    crop_share: float = 224 / 256
    """Share of an image's short side that the one test crop takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "num_frames", "size", "clips_side_by_side")
        if self.media == "image" and self.num_frames != 1:
            raise ValueError(f"num_frames={self.num_frames}: a view of an image has one frame; use 1")


def _at_least_one(config: DrawConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: must be at least 1; leave it out for the default")


def generator(seed: int, purpose: str, *what: int | str) -> np.random.Generator:
    """A generator that depends on nothing but its arguments; see ``derive_seed``."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, *what)))


def clip_span_frames(num_frames: int, frame_stride: int, fps: float) -> float:
    """Source frames that ``num_frames`` samples ``frame_stride`` apart at 30 fps cover at ``fps`` (SlowFast)."""
    return num_frames * frame_stride * (fps or SLOWFAST_FPS) / SLOWFAST_FPS


def uniform_clip_indices(
    video_frames: int, fps: float, num_frames: int, frame_stride: int, draw: np.random.Generator
) -> Indices:
    """SlowFast's training clip: a random start, ``span`` frames long, T indices spread evenly and truncated."""
    span = clip_span_frames(num_frames, frame_stride, fps)
    return _spread(draw.uniform(0, max(0.0, video_frames - span)), span, num_frames, video_frames)


def evaluation_clip_indices(
    video_frames: int, fps: float, num_frames: int, frame_stride: int, clip: int, clips: int
) -> Indices:
    """SlowFast's clip ``clip`` of ``clips``, from the video's start to its end; a single clip is the middle one.

    Starts are whole frames (`get_start_end_idx` in SlowFast's `decoder.py`).
    """
    span = clip_span_frames(num_frames, frame_stride, fps)
    room = max(0.0, video_frames - span)
    start = math.floor(room / 2) if clips == 1 else clip * math.floor(room / (clips - 1))
    return _spread(start, span, num_frames, video_frames)


def exact_stride_indices(
    video_frames: int, num_frames: int, frame_stride: int, draw: np.random.Generator | None = None
) -> Indices:
    """Every ``frame_stride``-th stored frame from a random start (middle without ``draw``); the last frame repeats."""
    room = max(0, video_frames - ((num_frames - 1) * frame_stride + 1))
    start = room // 2 if draw is None else int(draw.integers(0, room + 1))
    return np.minimum(start + frame_stride * np.arange(num_frames), video_frames - 1)


def segment_indices(
    video_frames: int, num_frames: int, draw: np.random.Generator | None = None, clip: int = 0, clips: int = 1
) -> Indices:
    """One frame from each of T equal segments: random in training, the middle one in test (SSv2).

    With several test ``clips`` (VideoMAE): T * clips positions over the video, dealt in turn to the clips. VideoMAE's
    two clips come out exactly so: ``int(tick * x)`` and ``int(tick / 2 + tick * x)``, sorted, every second one.
    """
    if draw is None:
        tick = video_frames / num_frames
        ticks = tick * (np.arange(num_frames)[:, None] + np.arange(clips) / clips)  # [T, clips]
        offset = tick / 2 if clips == 1 else 0.0
        return _clamp(np.sort((ticks + offset).ravel())[clip::clips], video_frames)
    edges = np.linspace(0, video_frames, num_frames + 1)
    return _clamp(draw.uniform(edges[:-1], edges[1:]), video_frames)


def training_indices(video_frames: int, fps: float, view: ViewConfig, draw: np.random.Generator) -> Indices:
    """The frames of one training view by ``view.sampling``."""
    if view.sampling == "segments":
        return segment_indices(video_frames, view.num_frames, draw)
    if view.sampling == "stride":
        return exact_stride_indices(video_frames, view.num_frames, view.frame_stride, draw)
    return uniform_clip_indices(video_frames, fps, view.num_frames, view.frame_stride, draw)


def evaluation_indices(video_frames: int, fps: float, view: ViewConfig, clip: int, clips: int) -> Indices:
    """The frames of clip ``clip`` of ``clips`` in the test protocol, by ``view.sampling``."""
    if view.sampling == "segments":
        return segment_indices(video_frames, view.num_frames, clip=clip, clips=clips)
    if view.sampling == "stride":
        room = max(0, video_frames - ((view.num_frames - 1) * view.frame_stride + 1))
        start = room // 2 if clips == 1 else clip * (room // (clips - 1))
        return np.minimum(start + view.frame_stride * np.arange(view.num_frames), video_frames - 1)
    return evaluation_clip_indices(video_frames, fps, view.num_frames, view.frame_stride, clip, clips)


def random_resized_crop(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], draw: np.random.Generator
) -> CropBox:
    """A box of a random share of the area and a random aspect; after ten misses the largest centred one.

    The aspect is drawn log-uniformly, as SlowFast and torchvision do.
    """
    for _ in range(10):
        area = height * width * draw.uniform(*scale)
        ratio = math.exp(draw.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draw.integers(0, height - box_height + 1))
            left = int(draw.integers(0, width - box_width + 1))
            return CropBox(top, left, box_height, box_width)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return CropBox((height - box_height) // 2, (width - box_width) // 2, max(1, box_height), max(1, box_width))


def center_crop(height: int, width: int, share: float = 1.0) -> CropBox:
    """The centred square whose side is ``share`` of the short side.

    SlowFast's single test crop resizes the short side to 256 and cuts 224: share 224/256.
    """
    side = max(1, round(min(height, width) * share))
    return CropBox((height - side) // 2, (width - side) // 2, side, side)


def three_crops(height: int, width: int) -> tuple[CropBox, CropBox, CropBox]:
    """The short side's squares at the left, centre and right of a wide picture (top, middle, bottom of a tall one)."""
    side = min(height, width)
    starts = (0, (max(height, width) - side) // 2, max(height, width) - side)
    boxes = [CropBox(start, 0, side, side) if height > width else CropBox(0, start, side, side) for start in starts]
    return boxes[0], boxes[1], boxes[2]


def evaluation_crops(height: int, width: int, crops: int) -> tuple[CropBox, ...]:
    """SlowFast's test crops: one (short side 256, centre 224) or three of the full short side."""
    if crops == 1:
        return (center_crop(height, width, 224 / 256),)
    if crops == 3:
        return three_crops(height, width)
    raise ValueError(f"crops={crops}: must be 1 or 3; the published test protocols use no other")


def _spread(start: float, span: float, num_frames: int, video_frames: int) -> Indices:
    return _clamp(np.linspace(start, start + max(0.0, span - 1), num_frames), video_frames)


def _clamp(positions: npt.NDArray[np.float64], video_frames: int) -> Indices:
    return np.clip(positions, 0, video_frames - 1).astype(np.int64)
