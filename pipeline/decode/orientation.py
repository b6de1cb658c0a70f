"""Which way up a picture is shown: the eight display matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type


class Orientation(NamedTuple):
    """From the coded to the shown picture: first swap rows and columns, then reverse them."""

    transposed: bool = False
    reversed_rows: bool = False
    reversed_columns: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """By the frame's display matrix; one that is no multiple of a quarter turn counts as none."""
        data = frame.side_data.get(Type.DISPLAYMATRIX)
        if data is None:
            return cls()
        # x' = a x + c y and y' = b x + d y (ISO 14496-12, 8.3.2), in FFmpeg's order: a b u c d v.
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
        if not a and not d and b and c:
            return cls(True, b < 0, c < 0)
        return cls(False, d < 0, a < 0) if not b and not c and a and d else cls()

    @property
    def mirrored(self) -> bool:
        """Whether no rotation alone does it."""
        return self.transposed ^ self.reversed_rows ^ self.reversed_columns

    @property
    def rotation(self) -> int:
        """Clockwise degrees; of a mirrored picture after it was mirrored left to right."""
        if self.transposed:
            return 90 if self.reversed_columns else 270
        return 180 if self.reversed_rows else 0

    def upright(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """[H, W, ...] as it is shown."""
        if not any(self):
            return picture
        turned = picture.swapaxes(0, 1) if self.transposed else picture
        rows, columns = (slice(None, None, -1 if backward else 1) for backward in self[1:])
        return np.ascontiguousarray(turned[rows, columns])
