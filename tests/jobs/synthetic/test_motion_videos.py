"""Rendered videos: labels live in the motion only, files are real and repeatable, frame numbers survive a codec."""

from __future__ import annotations

import csv
import hashlib
import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.synthetic.motion_videos import (
    MAX_FRAME_NUMBER,
    MOTION_CLASSES,
    RAMP_RANGE,
    Rendering,
    draw_frames,
    draw_motion,
    encode,
    paint_frame_numbers,
    render_motion_videos,
)
from tests.support.frame_numbers import read_frame_number

UNIFORM_KS_BOUND = 1.95  # sqrt(n)·D of a uniform sample exceeds this once in a thousand times (Kolmogorov)


def test_every_frame_is_uniform_in_every_class() -> None:
    """The state of one frame has the same distribution whatever the class: no single frame reveals it."""
    samples = 600
    for number, label in enumerate(MOTION_CLASSES):
        motions = [draw_motion(label, 16, np.random.default_rng([number, i])) for i in range(samples)]
        for quantity, scale in (("x", 1.0), ("y", 1.0), ("angle", 2 * np.pi), ("log_size", 1.0)):
            states = np.stack([getattr(motion, quantity) for motion in motions]) / scale
            for frame in (0, 7, 15):
                assert _uniform_distance(states[:, frame]) < UNIFORM_KS_BOUND, (label, quantity, frame)


def test_states_of_one_frame_are_independent_of_each_other() -> None:
    """Nor does a pair of quantities in one frame, as position and size, reveal the class."""
    for number, label in enumerate(MOTION_CLASSES):
        rng = np.random.default_rng(number)
        motions = [draw_motion(label, 16, rng) for _ in range(2000)]
        states = np.array([[m.x[9], m.y[9], m.angle[9], m.log_size[9]] for m in motions])
        correlation = np.corrcoef(states.T) - np.eye(4)
        assert np.abs(correlation).max() < 0.1, label


@pytest.mark.parametrize(
    ("label", "quantity", "sign"),
    [
        ("moves_left", "x", -1),
        ("moves_right", "x", 1),
        ("moves_up", "y", -1),
        ("moves_down", "y", 1),
        ("turns_clockwise", "angle", 1),
        ("turns_anticlockwise", "angle", -1),
        ("grows", "log_size", 1),
        ("shrinks", "log_size", -1),
    ],
)
def test_a_class_moves_its_own_quantity_alone(label: str, quantity: str, sign: int) -> None:
    motion = draw_motion(label, 32, np.random.default_rng(3))
    for name, states in motion._asdict().items():
        steps = np.diff(states)
        if name == quantity:
            assert np.sign(np.median(steps)) == sign
        else:
            assert (steps == 0).all()


def test_the_drawn_shape_follows_its_motion() -> None:
    """The bright mass moves on the screen as the label names, growth included."""
    rendering = Rendering(num_frames=16)
    growth = _areas("grows", rendering)
    assert np.median(np.diff(growth)) > 0
    shrinking = _areas("shrinks", rendering)
    assert np.median(np.diff(shrinking)) < 0
    right = _bright("moves_right", rendering)
    for before, after in itertools.pairwise(right):
        shifts = [(np.roll(before, shift, axis=1) & after).sum() for shift in range(-10, 11)]
        assert np.argmax(shifts) > 10
    down = _bright("moves_down", rendering)
    for before, after in itertools.pairwise(down):
        shifts = [(np.roll(before, shift, axis=0) & after).sum() for shift in range(-10, 11)]
        assert np.argmax(shifts) > 10


def test_clockwise_is_clockwise_on_the_screen() -> None:
    """The centre of mass of the shape's bright pixels circles its axis to the right of the top."""
    rng = np.random.default_rng(5)
    motion = draw_motion("turns_clockwise", 16, rng)
    centred = motion._replace(x=np.full(16, 0.5), y=np.full(16, 0.5))
    masses = _brightness(draw_frames([centred], Rendering(num_frames=16), rng)) > RAMP_RANGE[1] + 5
    angles = []
    for mass in masses:
        rows, columns = np.nonzero(mass)
        angles.append(np.arctan2(rows.mean() - 63.5, columns.mean() - 63.5))
    assert np.median(np.diff(np.unwrap(angles))) > 0  # y points down, so a growing angle is clockwise


def test_files_are_real_numbered_and_repeatable(tmp_path: Path) -> None:
    first = render_motion_videos(tmp_path / "a", 16, 1, size=96, num_frames=8, annotations=True)
    second = render_motion_videos(tmp_path / "b", 16, 1, size=96, num_frames=8, workers=1)
    assert {video.label for video in first} == set(MOTION_CLASSES)
    assert {video.path.suffix for video in first} == {".mp4", ".webm"}
    assert [_digest(video.path) for video in first] == [_digest(video.path) for video in second]
    for video in first:
        assert _frame_numbers(video.path) == list(range(8))
        with av.open(str(video.path)) as container:
            expected = "h264" if video.path.suffix == ".mp4" else "vp9"
            assert container.streams.video[0].codec_context.name == expected
    with (tmp_path / "a" / "annotations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"]) for row in rows] == [
        (video.path.relative_to(tmp_path / "a").as_posix(), video.label) for video in first
    ]


def test_container_does_not_tell_the_class() -> None:
    """About a quarter of each class is WebM; a rule such as "every fourth" would tie codec and class together."""
    shares = [
        np.mean([np.random.default_rng([0, n]).random() < 0.25 for n in range(c, 8 * 150, 8)])
        for c in range(len(MOTION_CLASSES))
    ]
    assert min(shares) > 0.1
    assert max(shares) < 0.4


@settings(deadline=None)
@given(st.integers(0, MAX_FRAME_NUMBER - 1), st.sampled_from([64, 96, 128, 130, 256]))
def test_frame_number_is_read_back(number: int, size: int) -> None:
    frames = np.zeros((2, size, size, 3), np.uint8)
    painted = paint_frame_numbers(np.broadcast_to(frames[:1], (number % 50 + 1, size, size, 3)).copy())
    assert read_frame_number(painted[-1]) == number % 50


def test_frame_number_survives_scaling_and_a_coarse_codec(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = paint_frame_numbers(draw_frames([draw_motion("grows", 40, rng)], Rendering(1.0, 128, 40), rng))
    encode(tmp_path / "video.mp4", frames, 30)
    with av.open(str(tmp_path / "video.mp4")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            for side in (72, 96, 112, 224):
                assert read_frame_number(frame.reformat(side, side, format="rgb24").to_ndarray()) == number


def test_a_frame_without_code_has_no_number() -> None:
    assert read_frame_number(np.full((64, 64, 3), 128, np.uint8)) is None


@pytest.mark.parametrize("wrong", [{"difficulty": 1.5}, {"size": 63}, {"num_frames": 0}])
def test_arguments_outside_their_rule_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rendering(**wrong)  # type: ignore[arg-type]


def _areas(label: str, rendering: Rendering) -> np.ndarray:
    return _bright(label, rendering).sum(axis=(1, 2)).astype(float)


def _bright(label: str, rendering: Rendering) -> np.ndarray:
    rng = np.random.default_rng(11)
    return _brightness(draw_frames([draw_motion(label, rendering.num_frames, rng)], rendering, rng)) > RAMP_RANGE[1] + 5


def _brightness(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32).mean(axis=-1)


def _uniform_distance(sample: np.ndarray) -> float:
    """Kolmogorov's distance from the uniform distribution on [0, 1), times the root of the sample size."""
    ordered = np.sort(sample)
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    return float(np.sqrt(len(ordered)) * max((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max()))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _frame_numbers(path: Path) -> list[int | None]:
    """The painted number of every frame of a video file, in order of presentation."""
    with av.open(str(path)) as container:
        return [read_frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
