"""H.264 made for fast random access, in memory.

Short GOPs, no B-frames, no CABAC and no deblocking (``tune=fastdecode``), one encoder thread: equal input gives equal
bytes.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from pipeline.decode.orientation import Orientation
from pipeline.transcode.config import TranscodeConfig


class ClipEncoder:
    """H.264 in MP4, in memory."""

    def __init__(self, like: Any, rate: Fraction, size: tuple[int, int], config: TranscodeConfig) -> None:
        self.file = io.BytesIO()
        # bitexact: no version or time in the file; faststart is not needed where whole files are read.
        self.container = av.open(self.file, "w", format="mp4", options={"fflags": "+bitexact"})
        self.stream: Any = self.container.add_stream("libx264", rate=rate, options=_x264_options(config))
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        codec = self.stream.codec_context
        codec.thread_count = 1
        codec.gop_size = config.gop
        codec.max_b_frames = 0
        codec.flags |= av.codec.context.Flags.bitexact
        codec.colorspace, codec.color_range = like.colorspace, like.color_range
        self.pts = 0
        self.time_base = 1 / rate

    def add(self, frame: Any) -> None:
        """Append a frame (yuv420p, of the clip's size); frames are not changed, several clips may share them."""
        frame.pts, frame.time_base = self.pts, self.time_base
        frame.pict_type = av.video.frame.PictureType.NONE
        self.pts += 1
        self.container.mux(self.stream.encode(frame))

    def finished(self) -> bytes:
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()


def _x264_options(config: TranscodeConfig) -> dict[str, str]:
    # x264's macroblock tree (its assembly, seen at 96 pixels width) gives different bytes from run to run.
    fixed = {"tune": "fastdecode", "x264-params": "mbtree=0:log-level=error"}
    return {"preset": config.preset, "crf": str(config.crf), **fixed}


def scaled_frame(frame: Any, size: tuple[int, int], orientation: Orientation) -> Any:
    """As yuv420p of the stored size, turned upright."""
    width, height = size[::-1] if orientation.transposed else size
    scaled = frame.reformat(width, height, "yuv420p", interpolation=Interpolation.AREA)
    if not any(orientation):
        return scaled
    turned = av.VideoFrame.from_ndarray(_turned_planes(scaled, orientation), format="yuv420p")
    turned.colorspace, turned.color_range = scaled.colorspace, scaled.color_range
    return turned


def _turned_planes(frame: Any, orientation: Orientation) -> npt.NDArray[np.uint8]:
    """Planes [H, W] and two of [H/2, W/2], each turned, in PyAV's packed layout ``[3 H / 2, W]``."""
    packed = frame.to_ndarray()
    height, width = frame.height, frame.width
    planes = np.split(packed.reshape(-1), [height * width, height * width * 5 // 4])
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    turned = [orientation.upright(plane.reshape(shape)) for plane, shape in zip(planes, shapes, strict=True)]
    new_width = height if orientation.transposed else width
    return np.concatenate([plane.reshape(-1) for plane in turned]).reshape(-1, new_width)
