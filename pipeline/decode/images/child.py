"""What the image decoder's child does for each type of request, as ``pipeline.decode.child`` does for videos.

A module of its own: only a child that opens images imports Pillow.
"""

from __future__ import annotations

import functools
import io
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.confinement.memory import SharedView
from pipeline.decode.child_loop import Handler, Replies, result_or_refusal, serve
from pipeline.decode.config import DecodeConfig, DecodeError, ImageView, VideoInfo
from pipeline.decode.images.file import facts, opened, reading, rendered, upright
from pipeline.decode.requests import DecodeImages, DecodeViews, Probe, Validate


def probe(path: str, request: Probe, replies: Replies) -> VideoInfo:
    """The facts, from the header; no pixel is decoded."""
    with reading(path) as file, opened(file, replies.limits) as image:
        return facts(image, replies.limits)


def validate(path: str, request: Validate, replies: Replies) -> VideoInfo:
    """The facts of an image of which every pixel could be decoded."""
    with reading(path) as file, opened(file, replies.limits) as image:
        info = facts(image, replies.limits)
        upright(image)
        return info


def decode(path: str, request: DecodeViews, replies: Replies) -> str:
    """See ``DecodeViews``."""
    with reading(path) as file:
        _render(file, request, _memory.pixels(*replies.memory), replies.limits)
    return "pillow"


def decode_images(path: str, request: DecodeImages, replies: Replies) -> str:
    """See ``DecodeImages``. What is wrong with one image does not concern the others."""
    pixels, reasons = _memory.pixels(*replies.memory), []
    with reading(path) as file:
        for size, part in zip(request.sizes, request.parts, strict=True):
            image = io.BytesIO(file.read(size))
            refusal = result_or_refusal(functools.partial(_render, image, part, pixels, replies.limits))
            reasons.append(refusal.reason if refusal else "")
            replies.progress()
    return "\n".join(reasons)


def _render(file: BinaryIO, request: DecodeViews, pixels: npt.NDArray[np.uint8], limits: DecodeConfig) -> None:
    with opened(file, limits) as image:
        picture = upright(image)
        for view, output in zip(request.views, request.outputs(pixels), strict=True):
            if not isinstance(view, ImageView):
                raise DecodeError("unsupported", "an image has no frames to choose from")
            np.copyto(output[0], np.asarray(rendered(picture, view, limits)))


_memory = SharedView()
HANDLERS: dict[type, Handler] = {
    Probe: probe,
    Validate: validate,
    DecodeViews: decode,
    DecodeImages: decode_images,
}


def main(connection_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``."""
    serve(connection_file, HANDLERS)
