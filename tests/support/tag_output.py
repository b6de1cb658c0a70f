"""Tagging outputs made without decoding or scoring anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import OK
from pipeline.storage.delta import Change, write_data_file
from pipeline.storage.files import join
from pipeline.tagging.rows import ScoredWindow, tag_rows, video_row
from pipeline.tagging.schema import TAGS, VIDEO_SCHEMA, VIDEOS, tag_schema
from pipeline.tagging.tables import Changes, create_tables
from pipeline.tagging.windows import WindowGrid, video_id

GRID = WindowGrid(1.0, 1.0)
SETTINGS = {"weights_digest": "abc"}
COMMON = {"weights_digest": "abc", "run_key": "key", "run_id": "r", "attempts": 1}

Listed = tuple[str, str, str]
"""URI, content version, and `ok` or the error."""


def listed(uri: str, content: str, seconds: float = 2.0) -> dict[str, Any]:
    """A video as its task knows it."""
    return {"uri": uri, "content_version": content, "video_id": video_id(uri, content), "duration_seconds": seconds}


def written(output: str, videos: Iterable[Listed], labels: Mapping[str, float] | None = None) -> Changes:
    """The files of a task with two windows a video, or one row of an error, to be committed."""
    tags, rows = [], []
    for uri, content, status in videos:
        video = listed(uri, content)
        named = labels or {"jump": 0.75}
        scored = [ScoredWindow(index, list(named), list(named.values())) for index in range(2)]
        failed = [ScoredWindow(None, status=status, message=f"{status} {uri}")]
        of_video = tag_rows(video, scored if status == OK else failed, GRID, COMMON)
        tags += of_video
        rows.append(video_row(video, of_video, COMMON))
    tags_file = write_data_file(join(output, TAGS), pa.Table.from_pylist(tags, schema=tag_schema()))
    videos_file = write_data_file(join(output, VIDEOS), pa.Table.from_pylist(rows, schema=VIDEO_SCHEMA))
    return Changes(Change((tags_file,)), Change((videos_file,)))


def commit(output: str, *videos: Listed) -> None:
    """Add videos to an output, in one task and commit."""
    create_tables(output, SETTINGS).commit(written(output, videos), {})


def commit_embedded(
    output: str,
    videos: Mapping[str, npt.ArrayLike],
    labels: Callable[[str, int], Mapping[str, float]] = lambda uri, index: {"jump": 0.75},
) -> None:
    """Add videos with windows of a second, in one task and commit.

    Args:
        videos: URI → embeddings ``[windows, D]``.
        labels: of a URI and a window's index.
    """
    tags, rows = [], []
    for uri, embeddings in videos.items():
        vectors = np.asarray(embeddings, np.float32)
        video = listed(uri, "1", float(len(vectors)))
        windows = [
            ScoredWindow(index, list(named), list(named.values()), embedding=vector.tolist())
            for index, vector in enumerate(vectors)
            for named in [labels(uri, index)]
        ]
        of_video = tag_rows(video, windows, GRID, COMMON)
        tags += of_video
        rows.append(video_row(video, of_video, COMMON))
    size = len(np.asarray(next(iter(videos.values())))[0])
    settings = {**SETTINGS, "embedding_size": size, "input_size": [8, 64, 64], "precision": "fp32"}
    settings |= {"window_seconds": GRID.window_seconds, "hop_seconds": GRID.hop_seconds}
    tags_file = write_data_file(join(output, TAGS), pa.Table.from_pylist(tags, schema=tag_schema(embeddings=True)))
    videos_file = write_data_file(join(output, VIDEOS), pa.Table.from_pylist(rows, schema=VIDEO_SCHEMA))
    create_tables(output, settings).commit(Changes(Change((tags_file,)), Change((videos_file,))), {})
