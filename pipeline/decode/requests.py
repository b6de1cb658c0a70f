"""The requests of the decoder to its child: the type of a request selects the handler."""

from __future__ import annotations

import dataclasses
import itertools
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
    """Where each view's frames begin in the shared memory, in bytes; last, where the next video's may."""
    backend: Backend

    @classmethod
    def of(cls, views: Sequence[View], backend: Backend, start: int = 0) -> DecodeViews:
        """Frames of one view behind those of the other, from ``start`` on."""
        if not views or len({type(view) for view in views}) > 1:
            raise ValueError("views: must be one or more of the same kind; decode frame and time views separately")
        sizes = (math.prod(_shape(view)) for view in views)
        return cls(list(views), list(itertools.accumulate(sizes, initial=start)), backend)

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """Where each view's frames are in the shared memory, [T, H, W, 3]."""
        places = zip(self.views, itertools.pairwise(self.offsets), strict=True)
        return [pixels[start:stop].reshape(_shape(view)) for view, (start, stop) in places]


@dataclasses.dataclass(frozen=True)
class DecodeImages:
    """`DecodeViews` of several images, which lie in one file, one behind the other.

    The answer is a text with a line for each of them: empty, or the reason why it cannot be decoded.
    """

    sizes: Sequence[int]
    """Bytes of each image."""
    parts: Sequence[DecodeViews]


def _shape(view: View) -> tuple[int, int, int, int]:
    return len(view.keys), *view.size, 3
