"""The same few views every time, decoded in the calling process: what validation during training looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.decode.clip_decoder import ClipDecoder, protocol_views
from pipeline.decode.config import DecodeConfig
from pipeline.sampling import ViewConfig
from pipeline.shards.reader import PreparedSet, RowGroupReader, label_indices


class FixedView(NamedTuple):
    """The middle of a clip."""

    number: int
    """Of the clip, counted over its split."""
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

    The test protocol with one view. Shards hold the clips in a seeded shuffle, so the first are a sample of all. Clips
    that cannot be decoded are left out.
    """
    selection = prepared.selection(split, labelled_only)
    numbers = range(part, min(count, int(selection.clips_per_group.sum())), parts)
    if not numbers:
        return
    reader, decoder = RowGroupReader(selection), ClipDecoder(decode or DecodeConfig(), view.media)
    with decoder.decoder:
        for number in numbers:
            row = reader.clip(number)
            clip = row.drop_columns("video").to_pylist()[0]
            frames = np.zeros((view.num_frames, view.size, view.size, 3), np.uint8)
            if not decoder.decode(clip, row["video"][0], protocol_views(clip, view, clips=1, crops=1), [frames]):
                label = int(label_indices(row["label"], prepared.classes)[0])
                yield FixedView(number, clip["clip_id"], label, frames)
