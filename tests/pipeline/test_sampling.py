"""Frames and boxes: always inside the video, equal to the formulas of the sources, a function of their draws alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling import (
    ViewConfig,
    center_crop,
    evaluation_clip_indices,
    evaluation_crops,
    evaluation_indices,
    exact_stride_indices,
    generator,
    random_resized_crop,
    segment_indices,
    three_crops,
    training_indices,
    uniform_clip_indices,
)

video_frames = st.integers(1, 2000)
clip_frames = st.integers(1, 64)
strides = st.integers(1, 16)
rates = st.floats(0.0, 240.0)
seeds = st.integers(0, 2**32)
sides = st.integers(2, 4000)


@given(
    video_frames,
    rates,
    seeds,
    st.builds(
        ViewConfig,
        num_frames=clip_frames,
        frame_stride=strides,
        sampling=st.sampled_from(["uniform", "stride", "segments"]),
    ),
)
def test_training_frames_are_in_order_and_inside(frames: int, fps: float, seed: int, view: ViewConfig) -> None:
    indices = training_indices(frames, fps, view, np.random.default_rng(seed))
    again = training_indices(frames, fps, view, np.random.default_rng(seed))
    assert indices.shape == (view.num_frames,)
    assert indices.dtype == np.int64
    assert 0 <= indices.min() <= indices.max() < frames
    assert (np.diff(indices) >= 0).all()
    np.testing.assert_array_equal(indices, again)


@given(
    video_frames,
    rates,
    st.integers(1, 10),
    st.builds(
        ViewConfig,
        num_frames=clip_frames,
        frame_stride=strides,
        sampling=st.sampled_from(["uniform", "stride", "segments"]),
    ),
)
def test_evaluation_clips_are_inside_and_move_forward(frames: int, fps: float, clips: int, view: ViewConfig) -> None:
    starts = []
    for clip in range(clips):
        indices = evaluation_indices(frames, fps, view, clip, clips)
        assert indices.shape == (view.num_frames,)
        assert 0 <= indices.min() <= indices.max() < frames
        assert (np.diff(indices) >= 0).all()
        starts.append(indices[0])
    assert (np.diff(starts) >= 0).all()


def test_uniform_clip_is_slowfasts() -> None:
    """SlowFast `get_start_end_idx` and `temporal_sampling`: 16 x 4 at 30 fps spaces the frames 4.2 apart."""
    start = 100.0

    class FixedDraw(np.random.Generator):
        def uniform(self, low: float = 0.0, high: float = 1.0, size: None = None) -> float:  # type: ignore[override]
            assert (low, high) == (0, 300 - 64)
            return start

    indices = uniform_clip_indices(300, 30.0, 16, 4, FixedDraw(np.random.PCG64(0)))
    np.testing.assert_array_equal(indices, np.linspace(100, 163, 16).astype(np.int64))
    assert np.diff(indices).mean() == pytest.approx(4.2)


def test_frame_rates_are_converted() -> None:
    """At 60 fps the same view spans twice as many frames; at 15, half as many."""
    for fps, span in ((60.0, 128), (30.0, 64), (15.0, 32)):
        indices = evaluation_clip_indices(1000, fps, 16, 4, 0, 5)
        assert indices[-1] - indices[0] == span - 1


def test_evaluation_clips_are_slowfasts() -> None:
    """Clip k of K starts at k * floor((N - span) / (K - 1)), a single one in the middle."""
    assert [evaluation_clip_indices(300, 30.0, 16, 4, k, 5)[0] for k in range(5)] == [0, 59, 118, 177, 236]
    assert evaluation_clip_indices(300, 30.0, 16, 4, 0, 1)[0] == 118
    # N - span = 237: from frame 118.5 on, later indices would be others.
    start_from_whole_frame = np.linspace(118, 118 + 63, 16).astype(int)
    np.testing.assert_array_equal(evaluation_clip_indices(301, 30.0, 16, 4, 0, 1), start_from_whole_frame)
    assert (np.linspace(118.5, 118.5 + 63, 16).astype(int) != start_from_whole_frame).any()
    assert {evaluation_clip_indices(40, 30.0, 16, 4, k, 5)[0] for k in range(5)} == {0}


def test_two_segment_clips_are_videomaes() -> None:
    """VideoMAE's SSv2 test: positions int(tick * x) and int(tick / 2 + tick * x), sorted, every second from k."""
    frames, wanted = 37, 16
    tick = frames / wanted
    positions = sorted(
        [int(tick * x) for x in range(wanted)] + [min(frames - 1, int(tick / 2 + tick * x)) for x in range(wanted)]
    )
    for clip in range(2):
        np.testing.assert_array_equal(segment_indices(frames, wanted, clip=clip, clips=2), positions[clip::2])


@given(st.integers(16, 500), seeds)
def test_every_segment_gives_one_frame(frames: int, seed: int) -> None:
    indices = segment_indices(frames, 16, np.random.default_rng(seed))
    edges = np.linspace(0, frames, 17)
    assert (np.floor(edges[:-1]) <= indices).all()
    assert (indices < np.ceil(edges[1:])).all()
    middle = segment_indices(frames, 16)
    np.testing.assert_array_equal(middle, ((edges[:-1] + edges[1:]) / 2).astype(int))


@given(video_frames, clip_frames, strides, seeds)
def test_exact_stride_is_exact(frames: int, wanted: int, stride: int, seed: int) -> None:
    indices = exact_stride_indices(frames, wanted, stride, np.random.default_rng(seed))
    if frames >= (wanted - 1) * stride + 1:
        assert (np.diff(indices) == stride).all()
    else:
        assert indices[-1] == frames - 1


@given(sides, sides, seeds, st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(lambda pair: tuple(sorted(pair))))
def test_random_crops_are_inside_and_of_the_asked_area(
    height: int, width: int, seed: int, scale: tuple[float, float]
) -> None:
    aspect = (0.75, 4 / 3)
    box = random_resized_crop(height, width, scale, aspect, np.random.default_rng(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height > 0 < box.width
    if min(height, width) > 100 and max(height, width) < 1.3 * min(height, width) and scale[1] < 0.7:
        rounding = box.width + box.height + 1  # half a pixel a side
        assert scale[0] * height * width - rounding <= box.height * box.width <= scale[1] * height * width + rounding
        assert (box.width - 0.5) / (box.height + 0.5) <= aspect[1]
        assert (box.width + 0.5) / (box.height - 0.5) >= aspect[0]


@given(sides, sides)
def test_fixed_crops(height: int, width: int) -> None:
    boxes = three_crops(height, width)
    assert {(box.height, box.width) for box in boxes} == {(min(height, width),) * 2}
    assert (boxes[0].top, boxes[0].left) == (0, 0)
    assert boxes[2].top + boxes[2].height == height
    assert boxes[2].left + boxes[2].width == width
    assert boxes[1] == center_crop(height, width)
    (single,) = evaluation_crops(height, width, 1)
    assert single.height == single.width == max(1, round(min(height, width) * 224 / 256))


def test_only_one_or_three_crops() -> None:
    with pytest.raises(ValueError, match="crops=2"):
        evaluation_crops(256, 340, 2)


def test_draws_stay_what_they_are() -> None:
    """A golden value: another generator or derivation would change every run that is resumed."""
    assert generator(7, "crop", 3, "12#0").integers(0, 2**62) == GOLDEN_DRAW
    assert math.isclose(generator(7, "crop", 3, "12#1").random(), GOLDEN_SHARE, rel_tol=1e-12)


GOLDEN_DRAW = 1147542093458121016
GOLDEN_SHARE = 0.07197825277252923


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"size": 0}, {"repeats": 0}, {"crop_scale": (0.0, 1.0)}, {"crop_aspect": (2.0, 1.0)}]
)
def test_views_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        ViewConfig(**wrong)  # type: ignore[arg-type]
