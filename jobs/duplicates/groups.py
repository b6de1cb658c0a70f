"""Near-duplicate videos: the same footage encoded, cropped or cut another way.

Two videos are compared in two steps. Their mean embeddings select candidates; a candidate's similarity is the mean,
over the windows of the shorter video, of the cosine to the most similar window of the other, so that a copy may begin
later or be a part. Embeddings are whitened with the statistics of the collection.

Legend: V videos, N windows of all of them, D values of an embedding, P pairs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.finding.windows import Floats, scored_parts, unit_embeddings, unit_length
from pipeline.tagging.reader import TagSnapshot

COLUMNS = ("uri", "window_index", "embedding")
BLOCK = 2048
CANDIDATES = 20
"""Most videos, the most similar by their means, that a video is compared with window by window."""
SLACK = 0.25
"""By how much the means of two videos may be less alike than their windows."""
SHRINKAGE, TINY = 1e-3, 1e-12
"""Added to the variance of each axis, as a share of the largest, so that axes of noise stay small."""
GROUP_SCHEMA = pa.schema(
    [
        pa.field("group", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("representative", pa.bool_(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("windows", pa.int64(), nullable=False),
    ]
)
"""One video of a group; ``group`` is the number of the representative, ``similarity`` that to it."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Collection:
    """The videos of a snapshot as whitened embeddings, all of length 1."""

    uris: list[str]
    starts: Numbers
    """Where the windows of each video begin, and the end of the last: ``[V + 1]``."""
    windows: npt.NDArray[np.float16]
    """``[N, D]``; of a million windows with 768 values these are 1.5 GB."""
    means: Floats
    """``[V, D]``."""

    def similarity(self, first: int, second: int) -> float:
        """How much of the shorter of two videos is in the other: 1 for all, about 0 for unrelated footage."""
        short, long = sorted((self._windows(first), self._windows(second)), key=len)
        return min(1.0, float((short @ long.T).max(axis=1).mean()))

    def _windows(self, video: int) -> Floats:
        return self.windows[self.starts[video] : self.starts[video + 1]].astype(np.float32)


class Pair(NamedTuple):
    """Two near-duplicates, by their numbers."""

    first: int
    second: int
    similarity: float


def read_collection(snapshot: TagSnapshot) -> Collection:
    """All videos with scored windows."""
    uris: list[str] = []
    ends, parts = [np.zeros(1, np.int64)], [np.empty((0, snapshot.settings["embedding_size"]), np.float16)]
    for part in filter(len, scored_parts(snapshot, COLUMNS)):
        rows = part.sort_by([("uri", "ascending"), ("window_index", "ascending")])
        videos = pc.run_end_encode(rows["uri"].combine_chunks(), pa.int64())  # `group_by` promises no order
        uris += videos.values.to_pylist()
        ends.append(ends[-1][-1] + videos.run_ends.to_numpy())
        parts.append(unit_embeddings(rows).astype(np.float16))
    starts, windows = np.concatenate(ends), np.concatenate(parts)
    return whitened(uris, starts, windows)


def whitened(uris: list[str], starts: Numbers, windows: npt.NDArray[np.float16]) -> Collection:
    """Subtract the mean of all videos and scale its principal axes to one variance; windows are changed in place.

    Features of one network share a large common part, and a few axes (brightness, say) hold nearly all of the rest;
    what tells two videos apart is in the others (Jégou and Chum, "Negative evidences and co-occurrences in image
    retrieval: the benefit of PCA and whitening", 2012).

    Args:
        windows: ``[N, D]`` of length 1.
    """
    if not uris:
        return Collection(uris, starts, windows, np.empty((0, windows.shape[1]), np.float32))
    means = _means(windows, starts)
    centre = means.mean(axis=0)
    variances, axes = np.linalg.eigh((means - centre).T @ (means - centre) / len(means))
    scaled_axes = axes / np.sqrt(np.maximum(variances, 0) + SHRINKAGE * variances.max() + TINY)
    for start in range(0, len(windows), BLOCK):
        part = windows[start : start + BLOCK].astype(np.float32)
        windows[start : start + BLOCK] = unit_length((part - centre) @ scaled_axes)
    return Collection(uris, starts, windows, unit_length(_means(windows, starts)))


def _means(windows: npt.NDArray[np.float16], starts: Numbers) -> Floats:
    """Of the windows of each video, ``[V, D]``."""
    bounds = itertools.pairwise(starts)
    return np.stack([windows[start:end].mean(axis=0, dtype=np.float32) for start, end in bounds])


def similar_pairs(videos: Collection, min_similarity: float) -> list[Pair]:
    """The pairs that are at least so similar."""
    pairs = (
        Pair(first, second, videos.similarity(first, second))
        for first, second in candidates(videos.means, min_similarity - SLACK)
    )
    return [pair for pair in pairs if pair.similarity >= min_similarity]


def candidates(means: Floats, least: float) -> Iterable[tuple[int, int]]:
    """Each pair of videos once whose means are so similar, of each video's `CANDIDATES` most similar others."""
    pairs = set()
    for start in range(0, len(means), BLOCK):
        cosines = means[start : start + BLOCK] @ means.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1  # a video itself
        most = min(CANDIDATES, len(means) - 1)
        best = np.argpartition(-cosines, most, axis=1)[:, :most]
        rows, columns = np.nonzero(np.take_along_axis(cosines, best, axis=1) >= least)
        pairs |= {
            (min(pair), max(pair)) for pair in zip((rows + start).tolist(), best[rows, columns].tolist(), strict=True)
        }
    return sorted(pairs)


def grouped(videos: Collection, pairs: Iterable[Pair]) -> pa.Table:
    """Groups of near-duplicates, each with the longest video as its representative: `GROUP_SCHEMA`.

    Every other video of a group is a near-duplicate of the representative itself, not only of another member, so
    nothing is lost with it.
    """
    lengths = np.diff(videos.starts)
    likes: dict[int, dict[int, float]] = defaultdict(dict)
    for first, second, similarity in pairs:
        likes[first][second] = likes[second][first] = similarity
    rows: list[dict[str, Any]] = []
    taken: set[int] = set()
    for video in sorted(likes, key=lambda number: (-lengths[number], videos.uris[number])):
        copies = {other: similarity for other, similarity in likes[video].items() if other not in taken}
        if copies and video not in taken:
            members = {video: 1.0, **dict(sorted(copies.items(), key=lambda item: -item[1]))}
            rows += [
                {"group": video, "uri": videos.uris[one], "representative": one == video, "similarity": similarity,
                 "windows": lengths[one]} for one, similarity in members.items()
            ]  # fmt: skip
            taken |= members.keys()
    return pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)


def to_exclude(groups: pa.Table) -> list[str]:
    """The URIs of all videos of the groups but the representatives."""
    return list(groups.filter(pc.invert(groups["representative"]))["uri"].to_pylist())
