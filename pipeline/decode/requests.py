"""The requests of the decoder to its child: the type of a request selects the handler."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.decode.config import Backend, FrameView, TimeView

View = FrameView | TimeView


@dataclasses.dataclass(frozen=True)
class Probe:
    """The facts, from the headers, the packets and the first frame: a ``VideoInfo``."""


@dataclasses.dataclass(frozen=True)
class Validate:
    """Every frame decoded and checked: a ``VideoInfo`` that counts the frames that could be decoded."""


@dataclasses.dataclass(frozen=True)
class DecodeViews:
    """Views (all of one kind) into shared memory, from one pass over the video; the answer is who decoded it."""

    views: Sequence[View]
    offsets: Sequence[int]
    """Where each view's frames begin in the shared memory, in bytes."""
    memory_file: int
    """File descriptor of the shared memory; the child inherits it under the same number."""
    memory_bytes: int
    backend: Backend
