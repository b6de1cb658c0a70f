"""The same few views every time, decoded in the calling process: what training is measured on as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.decode.clip_decoder import ClipDecoder
from pipeline.decode.config import DecodeConfig, FrameView
from pipeline.sampling import ViewConfig, evaluation_crops, evaluation_indices
from pipeline.shards.reader import PreparedSet, RowGroupReader, label_indices


class FixedView(NamedTuple):
    """The middle of a clip."""

    number: int
    """Place of the clip in its split."""
    clip_id: int
    label: int
    """Class number, -1 for none."""
    frames: npt.NDArray[np.uint8]
    """``[T, H, W, 3]``."""


def fixed_views(
    prepared: PreparedSet,
    view: ViewConfig,
    *,
    split: str,
    count: int,
    labelled_only: bool = False,
    decode: DecodeConfig | None = None,
    part: int = 0,
    parts: int = 1,
) -> Iterator[FixedView]:
    """The middle clip, centre crop, of the first ``count`` clips of a split: of these numbers part, part + parts, ...

    Shards hold the clips in a seeded shuffle, so the first are a sample of all. Clips that cannot be decoded are left
    out.

    Raises:
        StorageError: the set's shards cannot be read.
    """
    selection = prepared.selection(split, labelled_only)
    numbers = range(part, min(count, int(selection.clips_per_group.sum())), parts)
    if not numbers:
        return
    reader, decoder = RowGroupReader(selection), ClipDecoder(decode or DecodeConfig())
    with closing(decoder.decoder):
        for number in numbers:
            row = reader.clip(number)
            clip = row.drop_columns("video").to_pylist()[0]
            frames = np.zeros((view.num_frames, view.size, view.size, 3), np.uint8)
            indices = evaluation_indices(clip["num_frames"], clip["fps"], view, 0, 1)
            (crop,) = evaluation_crops(clip["height"], clip["width"], 1)
            wanted = FrameView(indices, crop, (view.size, view.size))
            if not decoder.decode(clip, row["video"][0], [wanted], [frames]):
                label = int(label_indices(row["label"], prepared.classes)[0])
                yield FixedView(number, clip["clip_id"], label, frames)
