"""Which clips of a prepared set are used, and how often, in memory that grows with row groups and not with clips."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.schema import UNLABELLED
from pipeline.shards.index import ClipIndex

Ints = npt.NDArray[np.int64]

CLIPS_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class Balance:
    """How often the clips of each class come, so that every class comes as often as the largest.

    Where that is no whole number of times, the first clips of the class come once more. Unlabelled clips come once.
    """

    times: Ints
    """Of every clip of a class; the last entry is that of unlabelled clips. [classes + 1]"""
    once_more_before: Ints
    """Clips with a smaller number come once more than ``times``. [classes + 1]"""

    def of(self, labels: npt.NDArray[np.signedinteger], first: int) -> Ints:
        """How often each of the clips ``first``, ``first`` + 1, ... comes, by their labels: int64 [clips]."""
        numbers = first + np.arange(len(labels))
        return np.asarray(self.times[labels] + (numbers < self.once_more_before[labels]))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The rule by which clips are chosen."""

    split: str
    """A split's name, or "all"."""
    labelled_only: bool = False
    balance_classes: bool = False


class Selection:
    """The wanted clips of a version, numbered through over groups of reads.

    A group is a row group of the set, with its wanted clips; of balanced classes there are further ones, for each row
    group and each number of copies that some of its clips have: copies of a clip are then never in one group.
    """

    def __init__(self, index: ClipIndex, uri: str, wanted: Wanted) -> None:
        self.index, self.uri, self.wanted = index, uri, wanted
        self._balance: Balance | None = None  # while it is computed, every wanted clip comes once
        if wanted.balance_classes:
            self._balance = self._balanced()
        self.clips_per_group = self._clips_per_group()
        """Wanted clips of each group. [groups]"""

    def __reduce__(self) -> tuple[Any, ...]:
        return Selection, (self.index, self.uri, self.wanted)  # computed again where it arrives

    @functools.cached_property
    def first_clip(self) -> Ints:
        """Number of the first wanted clip of each group, and at last that of all clips. [groups + 1]"""
        first = np.zeros(len(self.clips_per_group) + 1, np.int64)
        np.cumsum(self.clips_per_group, out=first[1:])
        return first

    @property
    def groups_per_row_group(self) -> int:
        """Groups for each row group of the set, rounded up: 1, unless classes are balanced.

        A window of so many times more groups has as many row groups, and among them its share of copies.
        """
        return max(1, -(-len(self.clips_per_group) // max(1, self.index.groups)))

    def group(self, clip: int) -> int:
        """The group of a wanted clip, by its number."""
        return int(np.searchsorted(self.first_clip, clip, "right")) - 1

    def location(self, group: int) -> tuple[str, int]:
        """URI of the shard, and number within it, of the row group that a group reads."""
        return self.index.location(self.uri, self._row_group_and_copy(group)[0])

    def digest(self, group: int) -> str:
        """The digest of the row group that a group reads; empty in a set of an older release."""
        return self.index.digest(self._row_group_and_copy(group)[0])

    def copy(self, group: int) -> int:
        """How often each clip of a group came before: 0 everywhere, unless classes are balanced."""
        return self._row_group_and_copy(group)[1]

    def rows(self, group: int) -> Ints:
        """Rows within its row group of a group's wanted clips. [clips]"""
        row_group, copy = self._row_group_and_copy(group)
        start, stop = self.index.group_start[row_group : row_group + 2].tolist()
        return np.flatnonzero(self._times(start, stop) > copy)

    def _row_group_and_copy(self, group: int) -> tuple[int, int]:
        if group < self.index.groups:
            return group, 0
        row_group = int(np.searchsorted(self._first_copy, group, "right")) - 1
        return row_group, group - int(self._first_copy[row_group]) + 1

    def _times(self, start: int, stop: int) -> npt.NDArray[np.integer]:
        """How often each of the clips from ``start`` to before ``stop`` of the set comes; 0: it is not wanted."""
        labels = self.index.label[start:stop]
        wanted = np.ones(stop - start, bool)
        if self.wanted.split != "all":
            known = self.wanted.split in self.index.splits
            wanted &= known and self.index.split[start:stop] == self.index.splits.index(self.wanted.split)
        if self.wanted.labelled_only:
            wanted &= labels != UNLABELLED
        return wanted if self._balance is None else wanted * self._balance.of(labels, start)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Stretches of row groups, each of about `CLIPS_AT_ONCE` clips."""
        starts, first = self.index.group_start, 0
        while first < self.index.groups:
            stop = int(np.searchsorted(starts, starts[first] + CLIPS_AT_ONCE, "right")) - 1
            stop = min(max(stop, first + 1), self.index.groups)
            yield first, stop
            first = stop

    def _clips_per_group(self) -> npt.NDArray[np.int32]:
        wanted, most = np.zeros((2, self.index.groups), np.int32)
        for first, stop in self._pieces():
            times, starts, filled = self._times_of_groups(first, stop)
            wanted[first:stop][filled] = np.add.reduceat(times > 0, starts, dtype=np.int32)
            if self._balance is not None:
                most[first:stop][filled] = np.maximum.reduceat(times, starts)
        if self._balance is None:
            return wanted
        self._first_copy = self.index.groups + np.concatenate([[0], np.cumsum(np.maximum(most - 1, 0))])
        return np.concatenate([wanted, self._clips_per_copy()])

    def _clips_per_copy(self) -> npt.NDArray[np.int32]:
        """Wanted clips of the groups of copies: of row group g's k-th, its clips that come more than k times."""
        changes = np.zeros(int(self._first_copy[-1] - self._first_copy[0]) + 1, np.int32)
        for first, stop in self._pieces():
            times, starts, filled = self._times_of_groups(first, stop)
            sizes = np.diff([*starts, len(times)])
            first_copy = np.repeat(self._first_copy[first:stop][filled], sizes) - self.index.groups
            several = times > 1
            # A clip that comes t times is in the first t - 1 of its row group's groups of copies.
            np.add.at(changes, first_copy[several], 1)
            np.add.at(changes, (first_copy + times - 1)[several], -1)
        return np.cumsum(changes, dtype=np.int32)[:-1]

    def _times_of_groups(self, first: int, stop: int) -> tuple[npt.NDArray[np.integer], Ints, npt.NDArray[np.bool_]]:
        """`_times` of the clips of some row groups, where each row group begins among them, and which have any."""
        edges = np.asarray(self.index.group_start[first : stop + 1])
        filled = np.diff(edges) > 0
        return self._times(int(edges[0]), int(edges[-1])), (edges[:-1] - edges[0])[filled], filled

    def _balanced(self) -> Balance:
        counts = self.index.counts_of(self.wanted.split)[1:]
        most = int(counts.max(initial=0))
        times, rest = np.divmod(most, np.maximum(counts, 1))
        once_more_before = self._number_of_clip(np.where(counts > 0, rest, 0)) + 1
        return Balance(np.append(times, 1), np.append(np.where(rest > 0, once_more_before, 0), 0))

    def _number_of_clip(self, ordinals: Ints) -> Ints:
        """Of each class, the number in the set of its ``ordinal``-th wanted clip, counted from 1; -1 for ordinal 0."""
        numbers, seen = np.full(len(ordinals), -1), np.zeros(len(ordinals), np.int64)
        for first, stop in self._pieces():
            start, end = (int(self.index.group_start[group]) for group in (first, stop))
            labels = np.where(self._times(start, end) > 0, self.index.label[start:end], UNLABELLED)
            counted = np.bincount(labels[labels != UNLABELLED], minlength=len(ordinals))
            for number in np.flatnonzero((seen < ordinals) & (ordinals <= seen + counted)):
                numbers[number] = start + np.flatnonzero(labels == number)[ordinals[number] - seen[number] - 1]
            seen += counted
        return numbers
