"""A small prepared set whose clips say who they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.sampling import ViewConfig
from pipeline.schema import CLIP_SCHEMA
from pipeline.shards.digests import version_digest
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.shards.writer import write_shard
from pipeline.storage.files import join, write_bytes
from tests.support.numbered import write_numbered

FRAMES = 20
CLASSES = ("left", "right", "up")
# The crop is always the whole picture (96 x 64), so that its number can be read.
VIEW = ViewConfig(num_frames=4, frame_stride=2, size=32, sampling="stride", crop_scale=(1, 1), crop_aspect=(1.5, 1.5))
BROKEN = 5
AT_SOURCE = 6
MICRO_BATCH = 4


def small_prepared_set(folder: Path) -> PreparedSet:
    """Ten clips to train on (clip k shows the numbers from 20 k), one of them broken, one left at its source; two to
    test with. Three shards of several row groups."""
    rows = [_clip(folder, number) for number in range(12)]
    output = str(folder / "set")
    shards = [
        write_shard(output, f"{number}.parquet", pa.Table.from_pylist(some, schema=CLIP_SCHEMA), 3_000)
        for number, some in enumerate([rows[:5], rows[5:8], rows[8:]])
    ]
    record = {
        "version": 1,
        "digest": version_digest(shards, CLASSES),
        "classes": CLASSES,
        "shards": shards,
        "counts": {},
    }
    for place in ("versions/0001.json", "dataset.json"):
        write_bytes(join(output, place), json.dumps(record).encode())
    return open_prepared(output)


def _clip(folder: Path, number: int) -> dict[str, Any]:
    path = write_numbered(folder / f"{number}.mp4", FRAMES, first=FRAMES * number, b_frames=0)
    content = path.read_bytes()
    if number == BROKEN:
        content = content[:200] + bytes(len(content) - 200)
    return {
        "clip_id": 1000 + number,
        "uri": str(path),
        "start_seconds": 0.0,
        "end_seconds": FRAMES / 25,
        "label": CLASSES[number % 3] if number % 4 else None,
        "split": "train" if number < 10 else "val",
        "width": 96,
        "height": 64,
        "fps": 25.0,
        "num_frames": FRAMES,
        "video": None if number == AT_SOURCE else content,
    }
