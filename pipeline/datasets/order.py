"""The order of training: one endless stream of positions, a pure function of (seed, data digest, position).

Epoch e's views are a permutation of all (clip, repeat) pairs; epoch e + 1's follow without a seam. Row groups are
shuffled over the whole set, clips within a window of row groups, and the repeats of a clip stay together, so that they
come from one decode and one window of reads; or, where a micro-batch must not hold one clip alone, some clips take
turns. Prepare has shuffled the clips over the row groups before, once. Of balanced classes, each number of copies of a
row group's clips is a group of its own (`pipeline.shards.selection`), so these copies are spread over the epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.sampling import generator

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive views of one clip."""

    position: int
    """Stream position of the first view."""
    epoch: int
    clip: int
    """Number of the clip, counted over the row groups in the set's own order."""
    first_repeat: int
    views: int


@dataclasses.dataclass(frozen=True)
class StreamPart:
    """The share of some training workers, by their ranks in rising order, among ``of_workers`` in all.

    One stream per host: the samples are those that one stream per job would deal to the same workers.
    """

    ranks: tuple[int, ...]
    of_workers: int

    def __post_init__(self) -> None:
        rising = list(self.ranks) == sorted(set(self.ranks))
        if not (self.ranks and rising and self.ranks[0] >= 0 and self.ranks[-1] < self.of_workers):
            raise ValueError(f"part={self}: must name different workers from 0 to before of_workers, in rising order")

    def has(self, micro_batch: int) -> bool:
        """Whether a micro-batch, counted from the stream's start, belongs to these workers."""
        return micro_batch % self.of_workers in self.ranks


class StreamOrder:
    """Where each position of the stream comes from."""

    def __init__(
        self,
        clips_per_group: npt.NDArray[np.signedinteger],
        *,
        seed: int,
        digest: str,
        repeats: int,
        window_groups: int,
        clips_side_by_side: int = 1,
    ) -> None:
        """
        Args:
            clips_per_group: [groups], the clips to train on in each group of reads.
            window_groups: row groups over which clips are shuffled; what a reader holds in memory at a time.
            clips_side_by_side: that many clips (at an epoch's end up to twice as many) take turns, repeat by repeat.
                As many consecutive views of an epoch are then of different clips.
        """
        if clips_per_group.sum() == 0:
            raise ValueError("clips=0: a stream needs at least one clip; check split and labels of the data")
        self.clips_per_group = clips_per_group
        self.first_clip = np.concatenate([[0], np.cumsum(clips_per_group)])  # [groups + 1]
        self.seed = seed
        self.digest = digest
        self.repeats = repeats
        self.window_groups = window_groups
        self.clips_side_by_side = clips_side_by_side
        # The last epoch's and window's order: neighbouring positions share them.
        self._groups: tuple[int, Ints, Ints] | None = None
        self._window: tuple[tuple[int, int], Ints] | None = None

    @property
    def clips(self) -> int:
        """Clips of an epoch."""
        return int(self.first_clip[-1])

    @property
    def views_per_epoch(self) -> int:
        return self.clips * self.repeats

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The views from position ``start`` to before ``stop``, those of one clip in one run."""
        position = start
        while position < stop:
            epoch, offset = divmod(position, self.views_per_epoch)
            ordinal, repeat = self._clip_and_repeat(offset)
            views = 1 if self.clips_side_by_side > 1 else min(self.repeats - repeat, stop - position)
            yield Run(position, epoch, self._clip(epoch, ordinal), repeat, views)
            position += views

    def window_end(self, position: int) -> int:
        """Where the next window's clips begin after a position; those that take turns may do so a little earlier."""
        epoch, offset = divmod(position, self.views_per_epoch)
        _, window_starts = self._shuffled_groups(epoch)
        following = int(np.searchsorted(window_starts, offset // self.repeats, "right"))
        clips = int(window_starts[following]) if following < len(window_starts) else self.clips
        return epoch * self.views_per_epoch + clips * self.repeats

    def _clip_and_repeat(self, offset: int) -> tuple[int, int]:
        """A view's clip, by its ordinal in the epoch, and its repeat."""
        several = self.clips_side_by_side
        first = min(offset // (several * self.repeats), max(1, self.clips // several) - 1) * several
        clips = several if first + 2 * several <= self.clips else self.clips - first  # the last ones take the rest
        repeat, number = divmod(offset - first * self.repeats, clips)
        return first + number, repeat

    def _clip(self, epoch: int, ordinal: int) -> int:
        """The ``ordinal``-th clip of an epoch."""
        _, window_starts = self._shuffled_groups(epoch)
        window = int(np.searchsorted(window_starts, ordinal, "right")) - 1
        return int(self._shuffled_window(epoch, window)[ordinal - window_starts[window]])

    def _shuffled_groups(self, epoch: int) -> tuple[Ints, Ints]:
        """An epoch's order of row groups, and the ordinal at which each of its windows starts."""
        if self._groups and self._groups[0] == epoch:
            return self._groups[1:]
        groups = generator(self.seed, "row groups", self.digest, epoch).permutation(len(self.clips_per_group))
        sizes = self.clips_per_group[groups]
        starts = np.cumsum(sizes) - sizes
        self._groups = (epoch, groups, starts[:: self.window_groups].copy())  # not a view, which would keep them all
        return self._groups[1:]

    def _shuffled_window(self, epoch: int, window: int) -> Ints:
        """The clips of one window in the epoch's order."""
        if self._window and self._window[0] == (epoch, window):
            return self._window[1]
        groups, _ = self._shuffled_groups(epoch)
        chosen = groups[window * self.window_groups : (window + 1) * self.window_groups]
        clips = np.concatenate([np.arange(self.first_clip[group], self.first_clip[group + 1]) for group in chosen])
        draw = generator(self.seed, "window", self.digest, epoch, window)
        self._window = ((epoch, window), draw.permutation(clips))
        return self._window[1]


def segments(
    start: int, stop: int, micro_batch: int, *, of_workers: int = 1, most: int = 1000, least_rounds: int = 256
) -> Ints:
    """Cut the positions of a stream into pieces for its reader: int64 [pieces, 2], each of whole micro-batches.

    Args:
        of_workers: a piece holds as many micro-batches for each of them, where the stream does.
        least_rounds: in which every worker gets a micro-batch; a reader starts anew with each piece.
    """
    micro_batches, rest = divmod(stop - start, micro_batch)
    if stop <= start:
        raise ValueError(f"stop_position={stop}: must lie after start_position={start}; there is nothing left to read")
    if rest:
        raise ValueError(f"stop_position={stop}: must be a multiple of micro_batch={micro_batch} after {start}")
    rounds = -(-micro_batches // of_workers)
    step = micro_batch * of_workers * max(least_rounds, -(-rounds // most))
    starts = np.arange(start, stop, step)
    return np.stack([starts, np.minimum(starts + step, stop)], axis=1)
