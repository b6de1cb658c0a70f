"""The middle frames of some clips of a prepared set, for its contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.reports.plots import Cell
from jobs.reports.prepared_set import UNLABELLED
from pipeline.decode.config import DecodeError, FrameView, ImageView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.media import Media
from pipeline.schema import CLIP_SCHEMA
from pipeline.storage.blame import Blame, blame
from pipeline.storage.files import StorageError, join
from pipeline.storage.members import local_content
from pipeline.storage.parquet import read_conformed

CELL_PIXELS = 128
CLIP_COLUMNS = ["label", "uri", "num_frames", "width", "height", "video"]

Clip = Mapping[str, Any]
Shard = Mapping[str, Any]


def sheet_cells(data: str, shards: Sequence[Shard], wanted: int, seed: int, media: Media = "video") -> Iterator[Cell]:
    """Clips from at most ``wanted`` shards, drawn at random, over as many classes as fit.

    Args:
        data: URI of the prepared set.
        shards: the shards of one of its versions.
    """
    rng = np.random.default_rng(seed)
    drawn = [shards[index] for index in rng.permutation(len(shards))[:wanted]]
    with IsolatedDecoder(media=media) as decoder:
        for clip in _chosen(data, drawn, wanted):
            yield Cell(clip["label"] or clip["uri"].rpartition("/")[2], _middle_frame(decoder, clip, media))


def _chosen(data: str, shards: Sequence[Shard], wanted: int) -> Iterator[Clip]:
    """One clip of each class in turn, read shard by shard."""
    by_label: dict[str, list[tuple[str, int]]] = {}
    for shard in shards:
        for row, label in enumerate(
            read_conformed(join(data, shard["file"]), CLIP_SCHEMA, ["label"])["label"].to_pylist()
        ):
            by_label.setdefault(label or UNLABELLED, []).append((shard["file"], row))
    turns = [(turn, label, clip) for label, clips in by_label.items() for turn, clip in enumerate(clips)]
    chosen = [clip for _, _, clip in sorted(turns)[:wanted]]
    for shard in shards:
        rows = [row for file, row in chosen if file == shard["file"]]
        if rows:  # the video column is large: other shards are not read
            yield from read_conformed(join(data, shard["file"]), CLIP_SCHEMA, CLIP_COLUMNS).take(rows).to_pylist()


def _middle_frame(decoder: IsolatedDecoder, clip: Clip, media: Media) -> npt.NDArray[np.uint8] | None:
    """uint8 RGB ``[CELL_PIXELS, CELL_PIXELS, 3]`` on white; None where the video is missing or not decodable."""
    scale = CELL_PIXELS / max(clip["width"], clip["height"])
    size = max(1, round(clip["height"] * scale)), max(1, round(clip["width"] * scale))
    view: FrameView | ImageView = FrameView(np.array([(clip["num_frames"] - 1) // 2]), None, size)
    if media == "image":
        view = ImageView(None, size)
    try:
        if clip["video"] is not None:
            frame = decoder.decode(clip["video"], [view])[0][0]
        else:
            with local_content(clip["uri"], decoder.limits.max_bytes) as path:
                frame = decoder.decode(path, [view])[0][0]
    except DecodeError:
        return None
    except StorageError as error:
        if blame(error) is not Blame.OBJECT and not error.missing:
            raise
        return None
    cell = np.full((CELL_PIXELS, CELL_PIXELS, 3), 255, np.uint8)
    top, left = (CELL_PIXELS - size[0]) // 2, (CELL_PIXELS - size[1]) // 2
    cell[top : top + size[0], left : left + size[1]] = frame
    return cell
