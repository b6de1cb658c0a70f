"""Clips to label next: those whose labels are uncertain, and among these some that differ from each other.

Uncertainty alone chooses the same confusion a hundred times, diversity alone what the model knows well. So a pool of
the most uncertain clips comes first, one of each video, and k-center greedy on their embeddings chooses among them
(Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", 2018).

Legend: N windows, D values of an embedding, L labels kept in a window.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.finding.nearest import highest
from jobs.finding.windows import EMBEDDED_COLUMNS, Floats, scored_parts, unit_embeddings, unit_length
from pipeline.tagging.reader import TagSnapshot

UNCERTAINTY = "uncertainty"


class Pool(NamedTuple):
    """Clips to choose from, and what is known already."""

    clips: pa.Table
    """`EMBEDDED_COLUMNS` and `UNCERTAINTY`, the most uncertain first; one of each video."""
    centres: Floats
    """Embeddings of the labelled videos ``[.., D]``, of length 1, one each."""
    labels: list[str]
    """All that some window of the table has."""


def read_pool(snapshot: TagSnapshot, size: int, labelled: Collection[str]) -> Pool:
    """The most uncertain clips of the videos that are not labelled yet."""
    multi_label = bool(snapshot.settings.get("multi_label"))
    centres: list[Floats] = [np.empty((0, snapshot.settings["embedding_size"]), np.float32)]
    labels: set[str] = set()

    def parts() -> Iterator[tuple[pa.Table, Floats]]:
        for part in scored_parts(snapshot, EMBEDDED_COLUMNS):
            labels.update(pc.unique(pc.list_flatten(part["labels"])).to_pylist())
            is_known = pc.is_in(part["uri"], pa.array(labelled, pa.string()))
            if len(known := part.filter(is_known)):
                one_each = best_of_each(known["uri"], uncertainty(known["scores"], multi_label))
                centres.append(unit_embeddings(known.take(pa.array(one_each))))
            rest = part.filter(pc.invert(is_known))
            if len(rest):
                uncertain = uncertainty(rest["scores"], multi_label)
                best = best_of_each(rest["uri"], uncertain)
                yield rest.take(pa.array(best)), uncertain[best]

    clips = highest(parts(), size, UNCERTAINTY, EMBEDDED_COLUMNS)
    return Pool(clips, np.concatenate(centres), sorted(labels))


def uncertainty(scores: pa.ChunkedArray, multi_label: bool) -> Floats:
    """0 (sure) to 1 for each window, from its falling scores.

    Of shares of one: how close the second label comes to the first; of independent scores: how close any is to 0.5.
    """
    most = max(2, pc.max(pc.list_value_length(scores)).as_py() or 0)
    padded = pc.list_slice(scores, 0, most, return_fixed_size_list=True)
    values = pc.list_flatten(padded.combine_chunks().cast(pa.list_(pa.float32(), most)))
    rows = np.asarray(pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False), np.float32).reshape(-1, most)
    return 1 - (rows[:, 0] - rows[:, 1]) if not multi_label else (1 - 2 * np.abs(rows - 0.5)).max(axis=1)


def best_of_each(uris: pa.ChunkedArray, values: Floats) -> npt.NDArray[np.int64]:
    """The row with the highest value of each video."""
    videos = pc.dictionary_encode(uris).combine_chunks().indices.to_numpy()
    order = np.lexsort((-values, videos))
    _, first = np.unique(videos[order], return_index=True)
    return np.asarray(order[first], np.int64)


def choose(pool: Pool, count: int) -> pa.Table:
    """The clips of the pool to label, in the order in which they add most."""
    embeddings = unit_embeddings(pool.clips)
    centre = np.concatenate([embeddings, pool.centres]).mean(axis=0)
    relative, known = unit_length(embeddings - centre), unit_length(pool.centres - centre)
    return pool.clips.take(pa.array(k_center(relative, count, known))).drop_columns("embedding")


def k_center(embeddings: Floats, count: int, centres: Floats) -> list[int]:
    """Rows of ``[N, D]``, each the farthest from those before and from the given centres; without these, from row 0.

    Args:
        embeddings: of length 1, as ``centres``.
    """
    likeness = (embeddings @ centres.T).max(axis=1) if len(centres) else np.full(len(embeddings), -np.inf)
    chosen: list[int] = []
    while len(chosen) < min(count, len(embeddings)):
        chosen.append(int(np.argmin(likeness)))
        likeness = np.maximum(likeness, embeddings @ embeddings[chosen[-1]])
        likeness[chosen[-1]] = np.inf
    return chosen
