"""The one way to draw a figure: one style, one function that makes it and returns it as PNG, and the common plots."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from jobs.core.text import NAME_LENGTH, shown

DOTS_PER_INCH = 110
CAPTION_LINE_INCHES = 0.17  # of 8 points, and the space between lines
PIXELS_PER_CHARACTER = 6.5
MOST_MARKED = 12  # points of a line that are drawn as points, too: of a single one there is no line
CONTACT_COLUMNS = 8
CAPTION_LENGTH = 24  # of a picture on a contact sheet
STYLE: dict[RcKeyType, Any] = {
    "text.parse_math": False,  # names of classes, files and runs may contain $
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": DOTS_PER_INCH,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "savefig.dpi": "figure",
}


class Panel(NamedTuple):
    """One diagram of `curve_panels`."""

    title: str
    x_label: str
    lines: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
    """Name → x and y of every point."""


class Cell(NamedTuple):
    """One captioned picture of a contact sheet."""

    caption: str
    picture: npt.NDArray[np.uint8] | None
    """uint8 RGB ``[H, W, 3]``; None where there is none."""


def png(width: float, height: float, draw: Callable[[Figure], None], *, constrained: bool = True) -> bytes:
    """Make a figure, draw on it, return it as PNG.

    The figure never enters pyplot's global list, so it is freed on return, also in a thread.

    Args:
        width: inches; so is ``height``.
        draw: adds axes and what they show.
        constrained: arrange axes and texts so that none overlap; False where ``draw`` places them itself.
    """
    content = io.BytesIO()
    with rc_context(STYLE):  # while saving, too: tick labels are made then
        figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(content, format="png")
    return content.getvalue()


def curve_panels(rows: Sequence[Sequence[Panel]]) -> bytes:
    """Line diagrams in rows of equal length; a legend in the first of a row where there are several lines."""
    columns = len(rows[0])

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes, panel in zip(grid.flat, (panel for row in rows for panel in row), strict=True):
            axes.set(title=shown(panel.title, NAME_LENGTH), xlabel=shown(panel.x_label, NAME_LENGTH))
            for name, (x, y) in panel.lines.items():
                marker = "o" if np.size(x) <= MOST_MARKED else None
                axes.plot(x, y, marker=marker, markersize=4, label=shown(name, NAME_LENGTH))
        for row, axes in zip(rows, grid[:, 0], strict=True):
            if len(row[0].lines) > 1:
                axes.legend()

    return png(5 * columns, 3.8 * len(rows), draw)


def contact_sheet(cells: Sequence[Cell]) -> bytes:
    """Captioned pictures, eight in a row."""
    rows = max(1, -(-len(cells) // CONTACT_COLUMNS))

    def draw(figure: Figure) -> None:
        for number, cell in enumerate(cells):
            axes = figure.add_subplot(rows, CONTACT_COLUMNS, number + 1)
            axes.set_title(shown(cell.caption, CAPTION_LENGTH), fontsize=7)
            axes.set_axis_off()
            if cell.picture is None:
                axes.text(0.5, 0.5, "not decodable", ha="center", va="center", fontsize=7)
            else:
                axes.imshow(cell.picture)

    return png(CONTACT_COLUMNS * 1.6, rows * 1.8, draw)


def captioned_image(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.float32], caption: str, row_labels: Sequence[str] = ()
) -> bytes:
    """An RGB image ``[H, W, 3]``, pixel for pixel, with text below.

    Args:
        row_labels: names of rows of equal height that the image consists of, written into them.
    """
    height, width = image.shape[:2]
    lines = textwrap.wrap(shown(caption), int(width / PIXELS_PER_CHARACTER))
    caption_inches = (len(lines) + 1) * CAPTION_LINE_INCHES
    total_inches = height / DOTS_PER_INCH + caption_inches

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, caption_inches / total_inches, 1, 1 - caption_inches / total_inches))
        axes.imshow(image)
        axes.set_axis_off()
        for row, label in enumerate(row_labels):
            top = 6 + row * height / len(row_labels)
            axes.text(6, top, shown(label), va="top", fontsize=8, bbox={"facecolor": "white", "pad": 2, "lw": 0})
        figure.text(0.01, 0.5 * caption_inches / total_inches, "\n".join(lines), fontsize=8, va="center")

    return png(width / DOTS_PER_INCH, total_inches, draw, constrained=False)
