"""From planned videos to tasks: how many videos one holds, and which is read first."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TASK_BYTES = 256 * 2**20
"""Of the videos of a task, beside the last: a quarter of an hour of Full HD, some minutes of decoding."""
MOST_BYTES = 2**50
"""Of a video, whatever its source says."""


def cut_into_tasks(videos: pa.Table, most: int, last: Iterable[str] = ()) -> list[pa.Table]:
    """Videos by URI → tables of at most ``most`` of them, with the number of the task in a column ``task``.

    They hold fewer where videos are large: a task is lost with its worker, and the last ones leave others idle.

    Args:
        last: URIs that an earlier job may have died of. Read first, they would be at work again when the next job is
            killed early, and after `MOST` attempts a healthy video would count as one that kills.
    """
    suspect = pc.is_in(videos["uri"], pa.array(list(last), videos.schema.field("uri").type))
    order = pc.sort_indices(videos.append_column("suspect", suspect), [("suspect", "ascending"), ("uri", "ascending")])
    videos = videos.take(order)
    starts = np.flatnonzero(_begins_a_task(sizes_of(videos), most))
    lengths = np.diff(starts, append=len(videos))
    numbered = videos.append_column("task", pa.array(np.repeat(np.arange(len(starts)), lengths)))
    return [numbered.slice(start, length) for start, length in zip(starts, lengths, strict=True)]


def _begins_a_task(sizes: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.bool_]:
    """Where the next task begins: after so many videos, or so many bytes; a large video has one of its own."""
    large = sizes >= TASK_BYTES
    begins = large | np.roll(large, 1)
    for group in (np.arange(len(sizes)) // most, (np.cumsum(sizes) - sizes) // TASK_BYTES):
        begins |= group != np.roll(group, 1)
    begins[:1] = True
    return begins


def sizes_of(videos: pa.Table) -> npt.NDArray[np.int64]:
    """Bytes of each video, 0 where they are not known."""
    return np.asarray(np.clip(videos["size"].fill_null(0).to_numpy(), 0, MOST_BYTES), np.int64)


def order_of_reading(tasks: Sequence[pa.Table], last: Sequence[str]) -> list[pa.Table]:
    """Tasks in no order of names, large ones early, and those with videos that are read ``last`` at the end.

    Junk that sorts first would else be judged before anything good was seen (`FailureBudget`).
    """
    suspects = pa.array(last, pa.string())
    mixed = _large_ones_early(random.sample(tasks, len(tasks)))
    return sorted(mixed, key=lambda task: bool(pc.any(pc.is_in(task["uri"].cast(pa.string()), suspects)).as_py()))


def _large_ones_early(tasks: Sequence[pa.Table]) -> list[pa.Table]:
    """Every other task the largest that is left, while there are large ones.

    A long video that begins last keeps one worker busy while all others are idle; with the longest first the end is at
    most a third later than need be (Graham, "Bounds on multiprocessing timing anomalies", 1969).
    """
    sized = [(int(sizes_of(task).sum()), task) for task in tasks]
    large = sorted((one for one in sized if one[0] >= TASK_BYTES), key=lambda one: -one[0])
    others = iter([task for size, task in sized if size < TASK_BYTES])
    alternating = [one for _, task in large for one in (task, *itertools.islice(others, 1))]
    return [*alternating, *others]


def replaced(task: pa.Table) -> pa.Table:
    """``uri, video_id`` of the rows that those of a task replace."""
    old = task.filter(pc.is_valid(task["replaces"]))
    return pa.table({"uri": old["uri"], "video_id": old["replaces"]})
