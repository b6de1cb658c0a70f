"""Input and output of transcoding: configuration, clips to store, spans that were lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from pipeline.transcode.clip_geometry import MIN_SIDE

Mode = Literal["transcode", "passthrough", "reference"]


@dataclasses.dataclass(frozen=True)
class TranscodeConfig:
    """What is stored of each video."""

    mode: Mode = "transcode"
    """`transcode`: H.264 made for fast random access; `passthrough`: the original bytes; `reference`: no bytes, rows
    point to the original objects."""
    short_side: int = 256
    """Pixels of the shorter side; smaller videos are not enlarged."""
    gop: int = 32
    """Frames from one key frame to the next."""
    crf: int = 22
    """x264's constant rate factor: smaller is better and larger. At 22 the mean PSNR is above 36 dB (docs/data.md)."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """x264's preset: slower gives fewer bytes for the same quality."""
    target_fps: float | None = None
    """Frames per second to store, where the video has more. At the sampling rate a clip is consecutive frames."""
    clip_seconds: float | None = None
    """Length of the clips that videos are cut into; default: a video is one clip. The last clip takes a rest that is
    shorter than half of this."""
    hop_seconds: float | None = None
    """From one clip's start to the next one's; default: clip_seconds. Passthrough cuts at key frames."""
    square_pixels: bool = True
    """Store pictures in the shape in which they are shown; false keeps non-square pixels as they are."""
    damage: Literal["refuse", "trim", "keep"] = "trim"
    """`refuse`: nothing with damage is stored; `trim`: leading pictures that cannot be decoded because the stream was
    cut there are left out and counted, other damage is refused; `keep`: whatever can be decoded is stored, where frames
    are missing the one before stays on screen, and `damaged_frames` counts both; original bytes stay as they are."""

    def __post_init__(self) -> None:
        if self.short_side < MIN_SIDE or self.short_side % 2:
            raise ValueError(f"short_side={self.short_side}: must be even and at least {MIN_SIDE}; use 256")
        if not 0 < self.crf <= 51:
            raise ValueError(f"crf={self.crf}: must be 1 (best) to 51; use 22")
        if self.gop < 1:
            raise ValueError(f"gop={self.gop}: must be positive; use 32")
        for name in ("target_fps", "clip_seconds", "hop_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: must be positive; leave it out for none")
        if self.hop_seconds is not None and self.clip_seconds is None:
            raise ValueError(f"hop_seconds={self.hop_seconds}: needs clip_seconds; set both or neither")
        if not self.square_pixels and self.mode != "transcode":
            raise ValueError(
                f"square_pixels=false: originals are always read in square pixels; leave out mode={self.mode}"
            )
        if self.clip_seconds is not None and self.mode == "reference":
            # Readers of a reference decode the whole object: they would not know where a clip starts in it.
            raise ValueError("mode=reference: must store whole videos; leave clip_seconds out or use another mode")


@dataclasses.dataclass(frozen=True)
class StoredClip:
    """One clip to store: its span in the source, the facts of the stored bytes, these bytes (None: the source's)."""

    start_seconds: float
    end_seconds: float
    width: int
    height: int
    fps: float
    num_frames: int
    video: bytes | None

    def is_plausible(self) -> bool:
        """Whether any clip can have these facts."""
        return min(self.width, self.height, self.num_frames) > 0 and self.start_seconds <= self.end_seconds


@dataclasses.dataclass(frozen=True)
class Damage:
    """A span of the source that could not be stored while others could."""

    start_seconds: float
    end_seconds: float
    message: str

    def is_plausible(self) -> bool:
        """Whether the span is one."""
        return self.start_seconds <= self.end_seconds


Output = StoredClip | Damage
Emit = Callable[[Output], None]
