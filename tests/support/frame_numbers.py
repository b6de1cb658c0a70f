"""Reading the frame number that rendered videos carry in their top left corner."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jobs.synthetic.motion_videos import CODE_BIT_ROWS, CODE_CELL_SHARE, CODE_COLUMNS


def read_frame_number(frame: npt.NDArray[np.uint8]) -> int | None:
    """The number that `paint_frame_numbers` painted in a frame ``[H, W, 3]`` of any scale.

    None without a whole, self-consistent code (each bit is checked against its inverse).
    """
    rows = _cell_centres(2 * CODE_BIT_ROWS, frame.shape[0])
    columns = _cell_centres(CODE_COLUMNS, frame.shape[1])
    brightness = frame.mean(axis=2)[np.ix_(rows, columns)]
    bits, inverse = brightness[:CODE_BIT_ROWS], brightness[CODE_BIT_ROWS:]
    if (np.abs(bits - inverse) < 60).any():
        return None
    return int(((bits > inverse).reshape(-1) << np.arange(CODE_COLUMNS * CODE_BIT_ROWS)).sum())


def _cell_centres(cells: int, length: int) -> npt.NDArray[np.int64]:
    return ((np.arange(cells) + 0.5) * length * CODE_CELL_SHARE).astype(np.int64)
