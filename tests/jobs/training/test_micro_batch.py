"""Micro-batches on their way to the device, and the seeds of their draws."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.training.micro_batch import MicroBatch, micro_batch_from_columns, one_ahead

CPU = torch.device("cpu")


def columns(position: int) -> dict[str, object]:
    video = np.full((2, 1, 4, 4, 3), position, np.uint8)
    video.flags.writeable = False
    return {
        "video": video,
        "label": np.zeros(2, np.int64),
        "epoch": np.zeros(2, np.int64),
        "position": np.array([position, position + 1]),
        "sample_id": ["1#0", "2#0"],
        "failure": ["", "timeout"],
        "replaced_by": ["", "1#0"],
    }


def batches(count: int, fetched: list[int]) -> Iterator[MicroBatch]:
    for number in range(count):
        fetched.append(number)
        yield micro_batch_from_columns(columns(2 * number), seed=0, step=number, index=0, device=CPU)


def test_the_same_batches_in_order_and_one_ahead() -> None:
    fetched: list[int] = []
    ahead = one_ahead(batches(4, fetched), CPU)
    first = next(ahead)
    arrived = threading.Event()
    for _ in range(100):
        if len(fetched) == 2:
            break
        arrived.wait(0.02)
    assert fetched == [0, 1]  # the second is fetched while the first is in use, the third is not
    assert [first.position, *(batch.position for batch in ahead)] == [0, 2, 4, 6]
    assert [failure.sample_id for failure in first.failures] == ["2#0"]


def test_the_video_that_each_sample_shows() -> None:
    """A view that could not be decoded shows the one that stands in; with none left it keeps its own."""
    batch = next(batches(1, []))
    assert batch.videos == ["1", "1"]
    lost = {**columns(0), "sample_id": ["a#b#0", "a#b#1"], "failure": ["corrupt"] * 2, "replaced_by": ["", ""]}
    assert micro_batch_from_columns(lost, seed=0, step=0, index=0, device=CPU).videos == ["a#b", "a#b"]


def test_an_error_of_the_stream_arrives_where_its_batch_was_due() -> None:
    def broken() -> Iterator[MicroBatch]:
        yield from batches(1, [])
        raise RuntimeError("position 7 where 2 was due")

    ahead = one_ahead(broken(), CPU)
    assert next(ahead).position == 0
    with pytest.raises(RuntimeError, match="where 2 was due"):
        next(ahead)


def micro_batch(seed: int, step: int, index: int, position: int = 0) -> MicroBatch:
    return micro_batch_from_columns(columns(position), seed=seed, step=step, index=index, device=CPU)


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 63), st.sampled_from(["mask", "flip"]))
def test_draws_depend_on_the_names_alone(seed: int, step: int, index: int, purpose: str) -> None:
    """A sample's on run seed, purpose, epoch and sample id, wherever it turns up; a micro-batch's on its number."""
    batch, elsewhere = micro_batch(seed, step, index), micro_batch(seed, step + 1, index + 1, position=8)
    assert batch.sample_seeds(purpose) == elsewhere.sample_seeds(purpose)
    assert (
        len(
            {
                *batch.sample_seeds(purpose),
                *batch.sample_seeds("other"),
                *micro_batch(seed + 1, step, index).sample_seeds(purpose),
            }
        )
        == 6
    )

    def draw(some: MicroBatch, name: str = purpose) -> float:
        return torch.rand(1, dtype=torch.float64, generator=some.generator(name)).item()

    others = [
        micro_batch(seed + 1, step, index),
        micro_batch(seed, step + 1, index),
        micro_batch(seed, step, index + 1),
    ]
    assert draw(batch) == draw(micro_batch(seed, step, index, position=8))
    assert len({draw(batch), draw(batch, "other"), *map(draw, others)}) == 5
