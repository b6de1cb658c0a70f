"""Clips of a folder of real videos, decoded once into a memory-mapped file.

A folder holds lists of videos (CSV with `path`, `label`, `split`, `source_video`) and, where a part of the picture is
to be cut out, its centres (CSV with `source_video`, `x`, `y`).
Legend: N clips, T frames, S pixels of a side.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.decode.config import FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.sampling import CropBox, center_crop

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """What is kept of every video."""

    frames: int
    """Frames from the start (T); the last one repeats where a video is shorter."""
    box: int
    """Side of the square that is cut out of the picture, pixels; 0: the largest square in its middle."""
    side: int
    """Side after resizing (S), pixels."""


@dataclass(frozen=True)
class Clips:
    """The clips of one list."""

    frames: Pixels
    """``[N, T, S, S, 3]``, mapped from a file."""
    labels: Labels
    """``[N]``, numbers into ``classes``."""
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    """``[N]``: train, val or test."""

    def of_split(self, *splits: str) -> Labels:
        """Numbers of the clips of these splits, ascending."""
        return np.flatnonzero(np.isin(self.splits, splits))


def read_clips(folder: Path, listing: str, centres: str | None, cut: Cut, cache: Path) -> Clips:
    """The clips of a list in ``folder``, from ``cache`` where they were decoded before."""
    rows = _rows(folder / listing)
    classes = tuple(sorted({row["label"] for row in rows}))
    path = cache / f"{_digest(folder / listing, centres and folder / centres, cut)}.npy"
    if not path.exists():
        _decode(folder, rows, _centres(folder / centres) if centres else {}, cut, path)
    return Clips(
        frames=np.load(path, mmap_mode="r"),
        labels=np.array([classes.index(row["label"]) for row in rows]),
        classes=classes,
        splits=tuple(row["split"] for row in rows),
    )


def _decode(
    folder: Path, rows: Sequence[Mapping[str, str]], centres: Mapping[str, tuple[float, float]], cut: Cut, path: Path
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    shape = (len(rows), cut.frames, cut.side, cut.side, 3)
    frames = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
    decoder = IsolatedDecoder()
    try:
        for number, row in enumerate(rows):
            video = folder / row["path"]
            info = decoder.probe(video)
            box = crop_box(info.height, info.width, centres.get(row["source_video"]), cut)
            indices = np.minimum(np.arange(cut.frames), info.num_frames - 1)
            (frames[number],) = decoder.decode(video, [FrameView(indices, box, (cut.side, cut.side))])
    finally:
        decoder.close()
    frames.flush()
    unfinished.replace(path)


def crop_box(height: int, width: int, centre: tuple[float, float] | None, cut: Cut) -> CropBox:
    """The square around ``centre``, moved inside the picture."""
    if not cut.box:
        return center_crop(height, width)
    x, y = centre or (width / 2, height / 2)
    side = min(cut.box, height, width)
    top, left = (round(min(max(0, at - side / 2), size - side)) for at, size in ((y, height), (x, width)))
    return CropBox(top, left, side, side)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _centres(path: Path) -> dict[str, tuple[float, float]]:
    return {row["source_video"]: (float(row["x"]), float(row["y"])) for row in _rows(path)}


def _digest(listing: Path, centres: Path | None, cut: Cut) -> str:
    contents = [listing.read_bytes(), centres.read_bytes() if centres else b"", repr(cut).encode()]
    return f"{listing.stem}-{hashlib.sha256(b'|'.join(contents)).hexdigest()[:12]}"
