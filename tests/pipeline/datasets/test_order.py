"""The stream of positions: every view once an epoch, no seam between epochs, the same from any start, well mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.order import Run, StreamOrder, segments

groups = st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(lambda sizes: sum(sizes) > 0)


def order_of(
    sizes: list[int], *, seed: int = 0, digest: str = "d", repeats: int = 1, window: int = 4, abreast: int = 1
) -> StreamOrder:
    return StreamOrder(
        np.array(sizes), seed=seed, digest=digest, repeats=repeats, window_groups=window, clips_side_by_side=abreast
    )


def views(runs: list[Run]) -> list[tuple[int, int, int, int]]:
    """Runs written out: (position, epoch, clip, repeat) of every view."""
    return [
        (run.position + number, run.epoch, run.clip, run.first_repeat + number)
        for run in runs
        for number in range(run.views)
    ]


@given(groups, st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 40), st.integers(1, 9))
def test_every_view_once_an_epoch(sizes: list[int], seed: int, repeats: int, window: int, abreast: int) -> None:
    order = order_of(sizes, seed=seed, repeats=repeats, window=window, abreast=abreast)
    for epoch in (0, 3):
        start = epoch * order.views_per_epoch
        epoch_views = views(list(order.runs(start, start + order.views_per_epoch)))
        assert [view[0] for view in epoch_views] == list(range(start, start + order.views_per_epoch))
        assert {view[1] for view in epoch_views} == {epoch}
        pairs = sorted((clip, repeat) for _, _, clip, repeat in epoch_views)
        assert pairs == [(clip, repeat) for clip in range(sum(sizes)) for repeat in range(repeats)]


@given(groups, st.integers(1, 4), st.integers(1, 9), st.data())
def test_any_start_and_any_cut_give_the_same_views(
    sizes: list[int], repeats: int, abreast: int, data: st.DataObject
) -> None:
    whole = views(list(order_of(sizes, repeats=repeats, abreast=abreast).runs(0, 60)))
    start = data.draw(st.integers(0, 59))
    assert views(list(order_of(sizes, repeats=repeats, abreast=abreast).runs(start, 60))) == whole[start:]
    micro_batch = data.draw(st.integers(1, 12))
    order = order_of(sizes, repeats=repeats, abreast=abreast)
    cut = [view for first in range(0, 60, micro_batch) for view in views(list(order.runs(first, first + micro_batch)))]
    assert cut[:60] == whole


def test_repeats_of_a_clip_are_one_run() -> None:
    order = order_of([3, 4], repeats=4)
    assert [run.views for run in order.runs(0, 28)] == [4] * 7
    assert [(run.first_repeat, run.views) for run in order.runs(2, 9)] == [(2, 2), (0, 4), (0, 1)]


@given(groups, st.integers(1, 4), st.integers(2, 9))
def test_clips_side_by_side_are_different_ones(sizes: list[int], repeats: int, abreast: int) -> None:
    """Wherever a micro-batch begins within an epoch."""
    order = order_of(sizes, repeats=repeats, abreast=abreast)
    clips = [clip for _, _, clip, _ in views(list(order.runs(0, order.views_per_epoch)))]
    different = min(abreast, sum(sizes))
    assert all(len(set(clips[at : at + different])) == different for at in range(len(clips) - different + 1))


def test_clips_side_by_side_are_the_same_clips_in_the_same_order() -> None:
    """The first views of an epoch's clips come as without, so a window of reads is not larger."""
    together, apart = (order_of([10] * 6, repeats=2, abreast=abreast) for abreast in (1, 3))
    firsts = [[clip for _, _, clip, repeat in views(list(order.runs(0, 120))) if repeat == 0]
              for order in (together, apart)]  # fmt: skip
    assert firsts[0] == firsts[1]


def test_epochs_seeds_and_data_have_orders_of_their_own() -> None:
    def clips(seed: int, digest: str, epoch: int) -> list[int]:
        order = order_of([20] * 10, seed=seed, digest=digest)
        return [run.clip for run in order.runs(epoch * 200, (epoch + 1) * 200)]

    orders = [clips(0, "d", 0), clips(0, "d", 1), clips(1, "d", 0), clips(0, "e", 0)]
    for number, one in enumerate(orders):
        assert clips(0, "d", 0) == orders[0]
        for other in orders[number + 1 :]:
            assert np.mean(np.array(one) == np.array(other)) < 0.1


def test_a_window_touches_few_row_groups() -> None:
    """What a reader holds: the views of any stretch of a window come from the window's row groups."""
    order = order_of([10] * 64, window=8)
    touched = [{run.clip // 10 for run in order.runs(start, start + 80)} for start in range(0, 640, 80)]
    assert all(len(of_window) == 8 for of_window in touched)
    assert len(set().union(*touched)) == 64


@given(groups, st.integers(1, 4), st.integers(1, 9), st.integers(0, 400))
def test_a_window_ends_where_the_next_ones_row_groups_begin(
    sizes: list[int], repeats: int, window: int, position: int
) -> None:
    order = order_of(sizes, repeats=repeats, window=window)
    end = order.window_end(position)
    assert end > position
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    until, after = ({int(group_of[run.clip]) for run in order.runs(*span)}
                    for span in ((position, end), (end, end + 1)))  # fmt: skip
    assert len(until) <= window
    same_epoch = position // order.views_per_epoch == end // order.views_per_epoch
    assert not (same_epoch and after & until)


def test_batches_are_as_mixed_as_a_true_shuffle() -> None:
    """Class entropy of batches of 64, from 50 classes in sorted order that prepare shuffled once over row groups."""
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.repeat(np.arange(50), 200))  # prepare's seeded global shuffle
    order = order_of([20] * 500, window=16)

    def entropy(sequence: np.ndarray) -> float:
        shares = [
            np.bincount(batch, minlength=50) / 64 for batch in sequence[: len(sequence) // 64 * 64].reshape(-1, 64)
        ]
        return float(np.mean([-(share[share > 0] * np.log2(share[share > 0])).sum() for share in shares]))

    for epoch in (0, 1):
        clips = np.array([run.clip for run in order.runs(epoch * 10_000, (epoch + 1) * 10_000)])
        assert entropy(labels[clips]) == pytest.approx(entropy(draw.permutation(labels)), rel=0.01)
    # Without prepare's shuffle the windows alone would not mix: what the test can tell apart.
    assert entropy(np.sort(labels)[clips]) < 0.9 * entropy(labels[clips])


def test_no_clip_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        order_of([0, 0])


@given(st.integers(0, 10**9), st.integers(1, 10**7), st.integers(1, 64), st.integers(1, 2000))
def test_segments_cover_the_stream_in_whole_micro_batches(
    start: int, micro_batches: int, micro_batch: int, workers: int
) -> None:
    pieces = segments(start, start + micro_batches * micro_batch, micro_batch, of_workers=workers)
    assert 0 < len(pieces) <= 1001
    assert ((pieces[:, 1] - pieces[:, 0]) % micro_batch == 0).all()
    assert pieces[0, 0] == start
    assert pieces[-1, 1] == start + micro_batches * micro_batch
    np.testing.assert_array_equal(pieces[1:, 0], pieces[:-1, 1])


def test_a_stream_of_no_whole_micro_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="stop_position=10"):
        segments(0, 10, 4)
    with pytest.raises(ValueError, match="nothing left to read"):
        segments(8, 8, 4)
