"""What the image decoder's child does for each type of request, as ``pipeline.decode.child`` does for videos.

A module of its own: only a child that opens images imports Pillow.
"""

from __future__ import annotations

import numpy as np

from pipeline.confinement.memory import SharedView
from pipeline.decode.child_loop import Handler, Replies, serve
from pipeline.decode.config import DecodeError, ImageView, VideoInfo
from pipeline.decode.images.file import facts, opened, rendered, upright
from pipeline.decode.requests import DecodeViews, Probe, Validate


def probe(path: str, request: Probe, replies: Replies) -> VideoInfo:
    """The facts, from the header; no pixel is decoded."""
    with opened(path, replies.limits) as image:
        return facts(image, replies.limits)


def validate(path: str, request: Validate, replies: Replies) -> VideoInfo:
    """The facts of an image of which every pixel could be decoded."""
    with opened(path, replies.limits) as image:
        info = facts(image, replies.limits)
        upright(image)
        return info


def decode(path: str, request: DecodeViews, replies: Replies) -> str:
    """See ``DecodeViews``."""
    outputs = request.outputs(_memory.pixels(*replies.memory))
    with opened(path, replies.limits) as image:
        picture = upright(image)
        for view, output in zip(request.views, outputs, strict=True):
            if not isinstance(view, ImageView):
                raise DecodeError("unsupported", "an image has no frames to choose from")
            np.copyto(output[0], np.asarray(rendered(picture, view, replies.limits)))
    return "pillow"


_memory = SharedView()
HANDLERS: dict[type, Handler] = {Probe: probe, Validate: validate, DecodeViews: decode}


def main(connection_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``."""
    serve(connection_file, HANDLERS)
