"""The test protocol's views in Ray Data: K temporal clips times crops of every clip, all from one decode.

No clip is replaced: one that cannot be decoded gives rows with the reason. Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.extensions import ArrowTensorArray

from pipeline.datasets.train import decoder_pool
from pipeline.decode.clip_decoder import ClipDecoder, protocol_views
from pipeline.decode.config import DecodeConfig
from pipeline.ray_data import configure_execution
from pipeline.sampling import ViewConfig
from pipeline.schema import OK
from pipeline.shards.reader import PreparedSet, RowGroupReader, label_indices
from pipeline.shards.selection import Selection

BLOCK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class ViewProtocol:
    """The views whose scores are averaged for one video."""

    clips: int = 5
    """Temporal clips per video, from start to end; 1 is the middle (Kinetics 5, SSv2 1 or 2)."""

    crops: int = 3
    """Spatial crops per clip: 3 (left, centre, right) or 1 (centre)."""

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"clips={self.clips}: must be at least 1; Kinetics takes 5")
        if self.crops not in (1, 3):
            raise ValueError(f"crops={self.crops}: must be 1 or 3; the published protocols take 3")

    @property
    def views(self) -> int:
        """Views per video."""
        return self.clips * self.crops


def evaluation_views(
    prepared: PreparedSet,
    view: ViewConfig,
    protocol: ViewProtocol,
    *,
    split: str = "val",
    labelled_only: bool = False,
    decode: DecodeConfig | None = None,
    concurrency: int = 2,
) -> ray.data.Dataset:
    """Every view of every clip of a split, one a row, those of a clip together.

    Columns: ``clip_id`` int64, ``uri``, ``label`` int64 (-1: none), ``view`` int64 (clip * crops + crop),
    ``repeats_frames`` (a frame occurs more than once, because the video has too few), ``status`` ("ok", or why the
    clip cannot be decoded; its frames are black then), ``video`` uint8 [T, H, W, 3].

    Raises:
        ValueError: the split holds no such clip.
    """
    selection = prepared.selection(split, labelled_only)
    groups = np.flatnonzero(selection.clips_per_group)
    if len(groups) == 0:
        known = ", ".join(f"{name} ({clips} clips)" for name, clips in sorted(prepared.splits().items()))
        raise ValueError(
            f"split={split}: contains no {'labelled ' if labelled_only else ''}clip; {prepared.uri} has {known}"
        )
    plan = ray.data.from_items([{"group": int(group)} for group in groups], override_num_blocks=len(groups))
    configure_execution(plan, block_bytes=BLOCK_BYTES)
    return plan.map_batches(
        DecodeEvaluationViews,
        fn_constructor_args=(selection, prepared.classes, view, protocol, decode or DecodeConfig()),
        **decoder_pool(min(concurrency, len(groups))),
    )


@dataclasses.dataclass
class DecodeEvaluationViews:
    """Stage: row groups in, the views of their clips out."""

    selection: Selection
    classes: tuple[str, ...]
    view: ViewConfig
    protocol: ViewProtocol
    decode: DecodeConfig

    def __post_init__(self) -> None:
        self.reader = RowGroupReader(self.selection, cache_bytes=0)
        self.decoder = ClipDecoder(self.decode, self.view.media)

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for group in batch["group"]:
            for clip in range(*self.selection.first_clip[group : group + 2]):
                yield self._views(self.reader.clip(clip))

    def _views(self, row: pa.Table) -> pa.Table:
        """All views of one clip, from one pass over its video."""
        clip = row.drop_columns("video").to_pylist()[0]
        count, size = self.protocol.views, self.view.size
        video = np.zeros((count, self.view.num_frames, size, size, 3), np.uint8)
        views = protocol_views(clip, self.view, self.protocol.clips, self.protocol.crops)
        failure = self.decoder.decode(clip, row["video"][0], views, list(video))
        if failure:
            video[:] = 0
        return pa.table(
            {
                "clip_id": pa.array([clip["clip_id"]] * count, pa.int64()),
                "uri": pa.array([clip["uri"]] * count, pa.string()),
                "label": np.repeat(label_indices(row["label"], self.classes), count),
                "view": np.arange(count, dtype=np.int64),
                "repeats_frames": pa.array([len(np.unique(view.keys)) < len(view.keys) for view in views]),
                "status": pa.array([failure or OK] * count, pa.string()),
                "video": ArrowTensorArray.from_numpy(video),
            }
        )
