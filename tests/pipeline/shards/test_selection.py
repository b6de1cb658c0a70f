"""Which clips are wanted: against the rule written out for every clip, and how copies of rare clips are spread."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.order import StreamOrder
from pipeline.shards import selection as selecting
from pipeline.shards.selection import Selection, Wanted
from tests.support.set_index import made_up_index

CLASSES = 4
SPLITS = ("train", "val")


def times_of(labels: list[int], wanted: list[bool], balance: bool) -> list[int]:
    """The rule for every clip: with balance each class as often as the largest, its first clips once more."""
    counts = Counter(label for label, chosen in zip(labels, wanted, strict=True) if chosen and label >= 0)
    most, seen, times = max(counts.values(), default=0), Counter[int](), []
    for label, chosen in zip(labels, wanted, strict=True):
        whole, rest = divmod(most, counts[label]) if balance and chosen and label >= 0 else (1, 0)
        seen[label] += chosen
        times.append(chosen * (whole + (seen[label] <= rest)))
    return times


@given(st.data())
def test_the_clips_are_those_of_the_rule(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=9))
    clips = sum(sizes)
    labels = data.draw(st.lists(st.integers(-1, CLASSES - 1), min_size=clips, max_size=clips))
    splits = data.draw(st.lists(st.integers(-1, 1), min_size=clips, max_size=clips))
    wanted = Wanted(data.draw(st.sampled_from([*SPLITS, "all", "absent"])), *data.draw(st.tuples(*[st.booleans()] * 2)))
    index = made_up_index(sizes, labels, splits, CLASSES, SPLITS)
    with patch.object(selecting, "CLIPS_AT_ONCE", data.draw(st.integers(1, 12))):
        selection = Selection(index, "set", wanted)
    chosen = [
        wanted.split in ("all", SPLITS[split] if split >= 0 else None) and (label >= 0 or not wanted.labelled_only)
        for label, split in zip(labels, splits, strict=True)
    ]
    times = times_of(labels, chosen, wanted.balance_classes)
    expected = {(clip, copy) for clip, often in enumerate(times) for copy in range(often)}
    found = []
    for group in range(len(selection.clips_per_group)):
        rows = selection.rows(group)
        assert len(rows) == selection.clips_per_group[group]
        uri, number = selection.location(group)
        row_group = 3 * int(uri.removeprefix("set/shards/").removesuffix(".parquet")) + number
        found += [(int(index.group_start[row_group] + row), selection.copy(group)) for row in rows]
    assert len(found) == len(expected) == selection.first_clip[-1]
    assert set(found) == expected
    if not wanted.balance_classes:  # groups are then the row groups, empty ones too: the order of runs depends on it
        assert len(selection.clips_per_group) == len(sizes)
        assert found == sorted(expected)
    assert [selection.group(clip) for clip in range(len(found))] == np.repeat(
        np.arange(len(selection.clips_per_group)), selection.clips_per_group
    ).tolist()


BATCH = 32


def batches_of(rare_clips: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and clips of an epoch's batches: 400 clips of each class, but of the last one; ten a row group."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation([*np.repeat(np.arange(classes - 1), 400), *[classes - 1] * rare_clips])
    sizes = [10] * (len(labels) // 10) + [len(labels) % 10] * (len(labels) % 10 > 0)
    index = made_up_index(sizes, labels.tolist(), [0] * len(labels), classes, SPLITS)
    selection = Selection(index, "set", Wanted("train", True, True))
    window = 16 * selection.groups_per_row_group
    order = StreamOrder(selection.clips_per_group, seed=seed, digest="d", repeats=1, window_groups=window)
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def clip(number: int) -> int:
        group = selection.group(number)
        row_group, _ = selection._row_group_and_copy(group)
        return int(starts[row_group] + selection.rows(group)[number - selection.first_clip[group]])

    clips = np.array([clip(run.clip) for run in order.runs(0, order.views_per_epoch)])
    clips = clips[: len(clips) // BATCH * BATCH].reshape(-1, BATCH)
    return labels[clips], clips


@pytest.mark.parametrize("rare_clips", [1, 4, 40, 200])
@pytest.mark.parametrize("classes", [4, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_copies_of_rare_clips_are_spread_over_the_epoch(rare_clips: int, classes: int, seed: int) -> None:
    """As a shuffle of all copies would: in how many batches the rare class lacks, and how often one clip is in one."""
    labels, clips = batches_of(rare_clips, classes, seed)
    rare = classes - 1
    lacking = np.mean((labels != rare).all(axis=1))
    expected = (1 - 1 / classes) ** BATCH
    assert lacking <= expected + 3 * np.sqrt(expected / len(labels)) + 0.02

    def most_of_one(batch: np.ndarray) -> int:
        return int(np.unique(batch, return_counts=True)[1].max())

    shuffled = np.random.default_rng(seed).permutation(clips.reshape(-1)).reshape(clips.shape)
    most, of_shuffled = (np.array([most_of_one(batch) for batch in some]) for some in (clips, shuffled))
    assert most.mean() <= 1.15 * of_shuffled.mean()
    assert (most >= 8).mean() <= (of_shuffled >= 8).mean() + 0.03


def test_a_selection_travels_as_its_rule() -> None:
    index = made_up_index([3, 2], [0, 1, -1, 0, 0], [0, 0, 1, 0, 1], CLASSES, SPLITS)
    rebuild, arguments = Selection(index, "set", Wanted("train")).__reduce__()
    assert arguments == (index, "set", Wanted("train"))
    assert rebuild(*arguments).clips_per_group.tolist() == [2, 1]
    assert index.__reduce__() == (index.source, ())
