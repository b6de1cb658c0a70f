"""Where workers run so that each host has a stream of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.supervision.placement import Demand, most_that_fit, place
from pipeline.datasets.train import DECODER_MEMORY_BYTES


@pytest.mark.parametrize(
    ("permitted", "free", "gpus", "fitting"),
    [
        (range(1, 3), {"CPU": 4.0}, False, 2),
        (range(1, 3), {"CPU": 2.0}, False, 1),  # two would leave no CPU for decoding
        (range(2, 3), {"CPU": 2.0}, False, 0),
        (range(1, 9), {"CPU": 64.0, "GPU": 4.0}, True, 4),
        (range(1, 9), {"CPU": 0.5, "GPU": 4.0}, True, 0),  # decoding has no capacity
        (range(1, 3), {}, False, 0),
        ((4, 8, 16), {"CPU": 64.0, "GPU": 15.0}, True, 8),
        ((4, 8, 16), {"CPU": 64.0, "GPU": 3.0}, True, 0),
    ],
)
def test_most_that_fit(permitted: range, free: dict[str, float], gpus: bool, fitting: int) -> None:
    assert most_that_fit(permitted, free, Demand(permitted[-1], 1, gpus)) == fitting


def test_fewer_workers_take_fewer_decoders() -> None:
    demand = Demand(most_workers=16, decoders=40, gpus=True)
    assert [demand.decoders_of(workers) for workers in (16, 8, 1)] == [40, 20, 3]
    assert demand.fits(8, {"GPU": 8.0, "CPU": 15.25})
    assert not demand.fits(16, {"GPU": 16.0, "CPU": 15.25})
    assert Demand(8, 1, True).decoders_of(1) == 1


EIGHT = {"GPU": 8.0, "CPU": 96.0}


def test_each_host_with_workers_has_a_stream_of_its_own() -> None:
    demand = Demand(16, 56, gpus=True)
    assert place(16, {"a": EIGHT, "b": EIGHT, "head": {"CPU": 0.0}}, demand) == ["a"] * 8 + ["b"] * 8
    assert place(8, {"a": EIGHT, "b": EIGHT}, demand) == ["a"] * 8
    # Decoders elsewhere do not count: these GPUs' hosts have CPUs for six workers' decoders at most.
    few = {"GPU": 8.0, "CPU": 16.0}
    assert place(16, {"a": few, "b": few, "c": {"CPU": 90.0}}, demand) is None
    assert place(12, {"a": few, "b": few}, demand) == ["a"] * 6 + ["b"] * 6
    assert place(13, {"a": few, "b": few}, demand) is None
    without_memory = {**EIGHT, "memory": 28.0 * DECODER_MEMORY_BYTES - 1}
    assert place(8, {"a": without_memory}, demand) is None


def test_workers_on_cpus_leave_some_to_their_streams() -> None:
    demand = Demand(3, 1, gpus=False)
    assert place(2, {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}, demand) == ["a", "b"]
    assert place(3, {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}, demand) is None  # one stream for all would fit
    assert most_that_fit([3], {"CPU": 4.0}, demand) == 3


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=6),
    st.integers(1, 20),
    st.integers(1, 60),
    st.booleans(),
)
def test_a_placement_always_fits(hosts: list[tuple[int, int]], workers: int, decoders: int, gpus: bool) -> None:
    offered = {str(number): {"GPU": float(g), "CPU": float(c)} for number, (g, c) in enumerate(hosts)}
    demand = Demand(20, decoders, gpus)
    placed = place(workers, offered, demand)
    if placed is None:
        # Whatever fits on hosts fits into their sum.
        rooms = [
            max((n for n in range(21) if n == 0 or demand.fits(n, there)), default=0) for there in offered.values()
        ]
        assert sum(rooms) < workers
        return
    assert len(placed) == workers
    assert placed == [host for host, count in Counter(placed).items() for _ in range(count)]  # side by side
    assert all(demand.fits(count, offered[host]) for host, count in Counter(placed).items())
    everything = {kind: sum(there[kind] for there in offered.values()) for kind in ("GPU", "CPU")}
    assert demand.fits(workers, everything)
