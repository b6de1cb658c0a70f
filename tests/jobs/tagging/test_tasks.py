"""Videos in tasks: by name, not too many nor too large, and in an order that leaves no worker idle at the end."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from jobs.tagging.tasks import MOST_BYTES, TASK_BYTES, cut_into_tasks, order_of_reading, replaced, sizes_of


def _videos(uris: Sequence[str], sizes: Sequence[int | None] | None = None) -> pa.Table:
    columns = {"uri": pa.array(uris), "size": pa.array(sizes or [1] * len(uris), pa.int64())}
    return pa.table(columns)


def _names(tasks: Sequence[pa.Table]) -> list[list[str]]:
    return [task["uri"].to_pylist() for task in tasks]


def test_tasks_hold_videos_by_name_and_what_they_replace() -> None:
    part = _videos(["b", "a", "c"]).append_column("replaces", pa.array([None, 5, None], pa.int64()))
    first, second = cut_into_tasks(part, 2)
    assert (first["uri"].to_pylist(), first["task"].to_pylist()) == (["a", "b"], [0, 0])
    assert (second["uri"].to_pylist(), second["task"].to_pylist()) == (["c"], [1])
    assert replaced(first).to_pylist() == [{"uri": "a", "video_id": 5}]
    assert replaced(second).to_pylist() == []
    assert _names(cut_into_tasks(part, 2, last=["a", "elsewhere"])) == [["b", "c"], ["a"]]
    assert cut_into_tasks(part.slice(0, 0), 2) == []


def test_a_large_video_has_a_task_of_its_own() -> None:
    third = TASK_BYTES // 3
    sizes = [1, TASK_BYTES, 5, None, third, third, third, third, 7]
    tasks = cut_into_tasks(_videos(list("abcdefghi"), sizes), 4)
    assert ["b"] in _names(tasks)
    assert [name for names in _names(tasks) for name in names] == list("abcdefghi")
    assert [set(task["task"].to_pylist()) for task in tasks] == [{number} for number in range(len(tasks))]
    for task in tasks:
        assert len(task) <= 4
        assert len(task) == 1 or sizes_of(task).sum() < 2 * TASK_BYTES


@pytest.mark.parametrize("size", [-5, 2**63 - 1])
def test_a_source_may_state_any_size(size: int) -> None:
    tasks = cut_into_tasks(_videos([f"{number:03d}" for number in range(100)], [size] * 100), 16)
    assert len(tasks) == (100 if size > 0 else 7)
    assert max(map(int, sizes_of(pa.concat_tables(tasks)))) <= MOST_BYTES


def test_tasks_are_read_in_no_order_of_names_but_suspects_last() -> None:
    """Junk that sorts first would be judged before anything good was seen."""
    suspects = ["000.mp4", "001.mp4"]
    tasks = cut_into_tasks(_videos([f"{number:03d}.mp4" for number in range(100)]), 2, last=suspects)
    mixed = [task["task"][0].as_py() for task in order_of_reading(tasks, suspects)]
    assert sorted(mixed) == list(range(50))
    assert mixed != list(range(50))
    assert mixed[-1] == 49


def test_large_videos_are_read_early_the_largest_first_and_others_between_them() -> None:
    sizes = [3 * TASK_BYTES, TASK_BYTES, 2 * TASK_BYTES, *[1000] * 64]
    tasks = cut_into_tasks(_videos([f"{number:03d}" for number in range(67)], sizes), 16)
    ordered = [int(sizes_of(task).sum()) for task in order_of_reading(tasks, [])]
    assert ordered[:6:2] == [3 * TASK_BYTES, 2 * TASK_BYTES, TASK_BYTES]
    assert ordered[1] < TASK_BYTES
    assert _names(order_of_reading(tasks, ["000"]))[-1] == ["000"]


def test_workers_end_at_about_the_same_time() -> None:
    """Many short videos and some of two hours, on 16 workers that take the next task when they are free."""
    random.seed(0)
    draw = np.random.default_rng(0)
    sizes = [*draw.lognormal(np.log(3e6), 1.0, 20_000).astype(int), *[2 * 2**30] * 20]
    draw.shuffle(sizes)
    tasks = cut_into_tasks(_videos([f"{number:06d}" for number in range(len(sizes))], sizes), 16)
    ideal = sum(sizes) / 16
    assert _makespan(order_of_reading(tasks, []), 16) < 1.05 * ideal
    # The order of releases before: names, 16 to a task whatever their size.
    by_name = [pa.table({"size": sizes[start : start + 16]}) for start in range(0, len(sizes), 16)]
    assert _makespan(by_name, 16) > 1.05 * ideal


def _makespan(tasks: Sequence[pa.Table], workers: int) -> int:
    """When the last worker ends, in bytes."""
    free_at = [0] * workers
    for task in tasks:
        heapq.heapreplace(free_at, free_at[0] + int(sizes_of(task).sum()))
    return max(free_at)
