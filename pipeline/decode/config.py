"""What decoding takes and gives: configuration, views, facts, the error; shared by the decoder and its child."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.sampling import CropBox, Interpolation

Backend = Literal["auto", "decord", "pyav"]

MESSAGE_LENGTH = 160
Keys = TypeVar("Keys", npt.NDArray[np.int64], npt.NDArray[np.float64])


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How videos are decoded, and what one of them may cost."""

    backend: Backend = "auto"
    """Decoding library. `auto`, `pyav`: PyAV, the faster one by 1.3 to 1.7 times in `make bench`. `decord`: it, with
    PyAV where decord fails or is known to be wrong. Its FFmpeg is old and gets no repairs: `auto` never uses it."""

    deadline_seconds: float = 5.0
    """Seconds for one request (in validation: for each step of it), after which the child is killed."""

    max_pixels: int = 2**24
    """Largest picture (width times height) that is decoded; 4096 x 4096."""

    max_image_pixels: int = 2**26
    """Largest image (width times height) that is decoded: 67 million pixels; known before any pixel is decoded."""

    max_frames: int = 1_000_000
    """Most frames of one video."""

    max_repeated_frames: int = 200_000
    """Most frames that `prepare` stores of one video beyond those that it holds: a picture that stays on screen is
    stored as often as the frame rate asks for."""

    max_seconds: float = 12 * 3600.0
    """Longest video, in seconds."""

    max_bytes: int = 64 * 2**30
    """Largest file, in bytes."""

    max_cpu_seconds: float = 3600.0
    """Most seconds of CPU for one video, over all steps of its preparation or all windows of a chunk of tagging."""

    memory_bytes: int = 2 * 2**30
    """Memory that a decoding child may allocate, in bytes."""

    videos_per_child: int = 1000
    """Videos, or requests of up to 32 images, after which a child is replaced: decord's memory grows between videos."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "backend" and value <= 0:
                raise ValueError(f"{field.name}={value}: must be positive; leave it out for the default")
        if self.backend == "decord" and importlib.util.find_spec("decord") is None:
            raise ValueError("backend=decord: needs decord, which is not installed here; install it, or use auto")
        if self.memory_bytes < 2**28:
            raise ValueError(f"memory_bytes={self.memory_bytes}: must be at least 256 MiB; use {2**28} or more")


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """The facts of a video, from its packets and one decoded frame."""

    width: int
    """Square pixels as shown, after rotation."""
    height: int
    """Square pixels as shown, after rotation."""
    fps: float
    """Average frames per second; 0 when the file does not state it."""
    num_frames: int
    """Frames by their packets; after ``validate``: those that could be decoded."""
    duration_seconds: float
    """From the first frame's start to the last frame's end."""
    codec: str
    container: str
    rotation: int
    """Clockwise degrees from the coded to the shown picture: 0, 90, 180, 270."""
    mirrored: bool = False
    """Whether the coded picture is mirrored left to right before it is turned."""
    pixel_aspect: float = 1.0
    """Width of a coded pixel by its height; ``width`` and ``height`` are in square pixels."""
    trimmed_frames: int = 0
    """Leading pictures that cannot be decoded because what they refer to was cut off; ``num_frames`` omits them."""
    missing_seconds: float = 0.0
    """What the container promises behind its last frame, where that is more than rounding: the file was cut off."""
    damaged_frames: int = 0
    """Frames that the decoder called damaged, or that never came; known once all were decoded."""

    def is_plausible(self) -> bool:
        """Whether any video can have these facts. Without frames it is one of which all turned out damaged."""
        return min(self.width, self.height) > 0 and self.rotation in (0, 90, 180, 270) and self.pixel_aspect > 0

    @property
    def cut_off(self) -> str:
        """What is missing at the end of the file, as a message; '' where nothing is."""
        promised = self.duration_seconds + self.missing_seconds
        return f"the file ends after {self.duration_seconds:.2f} of {promised:.2f} s" if self.missing_seconds else ""


@dataclasses.dataclass(frozen=True)
class FrameView:
    """A clip to decode, by frame numbers.

    ``frame_indices`` int64 [T] from 0 in presentation order, repeats allowed; ``crop`` in pixels as shown (None: the
    whole picture); ``size`` H, W of the result.
    """

    frame_indices: npt.NDArray[np.int64]
    crop: CropBox | None
    size: tuple[int, int]

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """What identifies each frame. [T]"""
        return _checked(np.asarray(self.frame_indices, np.int64))


@dataclasses.dataclass(frozen=True)
class TimeView:
    """A clip to decode, by time: the frames on screen at ``times_seconds`` (float64 [T], from the first frame).

    Needs no index of the whole file, so a short window of a long video is cheap.
    """

    times_seconds: npt.NDArray[np.float64]
    crop: CropBox | None
    size: tuple[int, int]

    @property
    def keys(self) -> npt.NDArray[np.float64]:
        """What identifies each frame. [T]"""
        return _checked(np.asarray(self.times_seconds, np.float64))


@dataclasses.dataclass(frozen=True)
class ImageView:
    """A view of an image, resized as Pillow does it, with antialiasing. ``size``: H, W of the result.

    With ``crop`` (pixels as shown; None: the whole image) that part is resized, as in training. With ``short_side`` the
    whole image is resized to it and the centre is cut out, as torchvision's test transform does.
    """

    crop: CropBox | None
    size: tuple[int, int]
    interpolation: Interpolation = "bicubic"
    short_side: int | None = None

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """An image has one frame. [1]"""
        return np.zeros(1, np.int64)


class DecodeError(Exception):
    """A video that cannot be used; ``reason`` is one word to count by, ``message`` explains it to a person.

    Reasons, of the object: missing, forbidden, unreadable, not_a_file, replaced; of its content: empty, not_a_video,
    not_an_image, no_video_stream, unsupported, damaged, missing_frames; of limits: max_pixels, max_image_pixels,
    max_frames, max_repeated_frames, max_seconds, max_bytes, max_cpu_seconds, too_long_to_store; of the decoder:
    out_of_memory, timeout, crashed, interrupted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    @classmethod
    def quoting(cls, reason: str, message: str) -> DecodeError:
        """With a library's text, which may quote the file's content: cut short, and printable."""
        return cls(reason, "".join(c if c.isprintable() else "?" for c in message)[:MESSAGE_LENGTH])

    @classmethod
    def over(cls, limit: str, value: float, allowed: float) -> DecodeError:
        """A limit of ``DecodeConfig`` that the video breaks."""
        return cls(limit, f"{value:.0f} is over {limit}={allowed:.0f}")

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def _checked(keys: Keys) -> Keys:
    if keys.ndim != 1 or not len(keys) or keys.min() < 0:
        raise ValueError(f"frames={keys}: must be a non-empty list of non-negative numbers; use 0 for the first frame")
    return keys
