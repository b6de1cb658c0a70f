"""Pictures of a confusion matrix: all of it, and its most common mistakes. Legend: C classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hiera_video.metrics.classification import confused_pairs
from jobs.core.text import shown
from jobs.reports.plots import png

PAIRS_SHOWN = 20
NAME_LENGTH = 40  # of a class beside a matrix
COUNTED_CLASSES = 20  # numbers of more do not fit into the cells
NAMED_CLASSES = 40  # more names than this cannot be read beside a matrix


def confusion_picture(counts: Tensor, classes: Sequence[str]) -> bytes:
    """The matrix int ``[C, C]`` (true, predicted) as PNG, each row as shares of its true class."""
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    side = min(4 + 0.35 * len(classes), 14)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
        axes.set(xlabel="predicted", ylabel="true", title="counts; colour: share of each true class")
        if len(classes) <= NAMED_CLASSES:
            names = [shown(name, NAME_LENGTH) for name in classes]
            axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
            axes.set_yticks(range(len(names)), names)
        if len(classes) <= COUNTED_CLASSES:
            for (true, predicted), number in np.ndenumerate(counts.numpy()):
                colour = "black" if shares[true, predicted] > 0.5 else "white"  # viridis is dark below
                axes.text(predicted, true, f"{number}", ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.7)

    return png(side, side, draw)


def confused_pairs_picture(counts: Tensor, classes: Sequence[str]) -> bytes:
    """The most common mistakes of ``counts`` ``[C, C]`` as PNG, as shares of their true class."""
    pairs = confused_pairs(counts, PAIRS_SHOWN)
    videos = counts.sum(dim=1).tolist()

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        short = [shown(name, NAME_LENGTH) for name in classes]
        names = [f"{short[true]} → {short[predicted]}" for true, predicted, _ in pairs]
        bars = axes.barh(range(len(pairs)), [number / videos[true] for true, _, number in pairs])
        axes.bar_label(bars, [f"{number} of {videos[true]}" for true, _, number in pairs], padding=3)
        axes.set_yticks(range(len(pairs)), names)
        axes.set(xlim=(0, 1.1), xlabel="share of the true class", title="most common mistakes: true → predicted")
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()

    return png(9, 1.5 + 0.32 * max(1, len(pairs)), draw)
