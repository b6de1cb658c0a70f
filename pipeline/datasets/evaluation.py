"""The test protocol's views in Ray Data: K temporal clips times crops of every clip, all from one decode.

No clip is replaced: one that cannot be decoded gives rows with the reason. Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from ray.data.extensions import ArrowTensorArray

from pipeline.datasets.train import decoder_pool
from pipeline.decode.clip_decoder import IMAGES_A_REQUEST, ClipDecoder, protocol_views
from pipeline.decode.config import DecodeConfig, FrameView, ImageView
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
        # The views of a video take megabytes; images share a request to the decoder.
        at_once = 1 if self.view.media == "video" else IMAGES_A_REQUEST
        for group in batch["group"]:
            clips = range(*self.selection.first_clip[group : group + 2])
            for start in range(0, len(clips), at_once):
                yield from self._views([self.reader.clip(clip) for clip in clips[start : start + at_once]])

    def _views(self, rows: Sequence[pa.Table]) -> Iterator[pa.Table]:
        """All views of each of some clips, from one pass over its video."""
        clips = [row.drop_columns("video").to_pylist()[0] for row in rows]
        views = [protocol_views(clip, self.view, self.protocol.clips, self.protocol.crops) for clip in clips]
        size = (self.protocol.views, self.view.num_frames, self.view.size, self.view.size, 3)
        videos = [np.zeros(size, np.uint8) for _ in rows]
        failures = self.decoder.decode_all(clips, [row["video"][0] for row in rows], views, list(map(list, videos)))
        for row, of_clip, video, failure in zip(rows, views, videos, failures, strict=True):
            yield self._table(row, of_clip, video, failure)

    def _table(
        self, row: pa.Table, views: Sequence[FrameView | ImageView], video: npt.NDArray[np.uint8], failure: str
    ) -> pa.Table:
        """A row for every view of one clip; black where it could not be decoded."""
        if failure:
            video[:] = 0
        clip_id, uri = row["clip_id"][0].as_py(), row["uri"][0].as_py()
        return pa.table(
            {
                "clip_id": pa.array([clip_id] * len(views), pa.int64()),
                "uri": pa.array([uri] * len(views), pa.string()),
                "label": np.repeat(label_indices(row["label"], self.classes), len(views)),
                "view": np.arange(len(views), dtype=np.int64),
                "repeats_frames": pa.array([len(np.unique(view.keys)) < len(view.keys) for view in views]),
                "status": pa.array([failure or OK] * len(views), pa.string()),
                "video": ArrowTensorArray.from_numpy(video),
            }
        )
