"""The requests of the decoder to its child: the type of a request selects the handler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.decode.config import Backend, FrameView, ImageView, TimeView

View = FrameView | TimeView | ImageView


@dataclasses.dataclass(frozen=True)
class Probe:
    """The facts, from the headers, the packets and the first frame: a ``VideoInfo``."""


@dataclasses.dataclass(frozen=True)
class Validate:
    """Every frame decoded and checked: a ``VideoInfo`` that counts the frames that could be decoded."""


@dataclasses.dataclass(frozen=True)
class DecodeViews:
    """Views (all of one kind) into shared memory, whose file comes with the request, from one pass over the video.

    The answer is who decoded it.
    """

    views: Sequence[View]
    offsets: Sequence[int]
    """Where each view's frames begin in the shared memory, in bytes."""
    backend: Backend

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """In the child: where each view's frames go in the shared memory, [T, H, W, 3]."""
        shapes = [(len(view.keys), *view.size, 3) for view in self.views]
        places = zip(self.offsets, shapes, strict=True)
        return [pixels[start : start + math.prod(shape)].reshape(shape) for start, shape in places]
