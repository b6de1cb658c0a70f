"""Frames with their number painted in, through the transcoder and back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np

from jobs.synthetic.motion_videos import Rendering, draw_frames, draw_motion, paint_frame_numbers
from pipeline.decode.config import DecodeConfig, VideoInfo
from pipeline.decode.video_file import Video
from pipeline.transcode.config import Damage, StoredClip, TranscodeConfig
from pipeline.transcode.transcode import process
from tests.support.frame_numbers import read_frame_number


def frames_of(size: int = 128, count: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    motion = draw_motion("moves_right", count, rng)
    return paint_frame_numbers(draw_frames([motion], Rendering(0.5, size, count), rng))


def run(path: Path, **settings: Any) -> tuple[list[StoredClip | Damage], VideoInfo]:
    outputs: list[StoredClip | Damage] = []
    with Video(str(path), DecodeConfig()) as video:
        info = process(video, TranscodeConfig(**settings), outputs.append)
    return outputs, info


def one_clip(path: Path, **settings: Any) -> StoredClip:
    outputs, _ = run(path, **settings)
    assert len(outputs) == 1
    assert isinstance(outputs[0], StoredClip)
    return outputs[0]


def pictures(clip: StoredClip) -> list[np.ndarray]:
    assert clip.video is not None
    with av.open(io.BytesIO(clip.video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def numbers(clip: StoredClip) -> list[int | None]:
    return [read_frame_number(picture) for picture in pictures(clip)]
