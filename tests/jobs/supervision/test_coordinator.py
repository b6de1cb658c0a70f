"""What the coordinator keeps, forgets and gives to the driver, without an actor."""

from __future__ import annotations

import itertools

import pytest

from jobs.supervision.coordinator import Activity, Coordinator, Heartbeat, Line, StopReason


def heartbeat(rank: int, step: int = 0) -> Heartbeat:
    return Heartbeat(rank, "host", "node", 7, "stacks", step)


@pytest.fixture
def coordinator() -> Coordinator:
    coordinator = Coordinator()
    coordinator.begin(generation=2, step=5)
    return coordinator


def test_lines_are_given_once_and_the_state_every_time(coordinator: Coordinator) -> None:
    coordinator.post(2, "first", 6, {"loss": 1.0})
    coordinator.post(2, "", 7, {"loss": 0.5})
    coordinator.beat(2, heartbeat(0, 6))
    coordinator.beat(2, heartbeat(1, 7))
    coordinator.beat(2, heartbeat(0, 7))
    beats = {0: heartbeat(0, 7), 1: heartbeat(1, 7)}
    assert coordinator.take() == ([Line("first", {"loss": 1.0})], [{"loss": 1.0}, {"loss": 0.5}], 7, beats)
    assert coordinator.take() == ([], [], 7, beats)


def test_a_group_that_was_replaced_is_heard_but_not_counted(coordinator: Coordinator) -> None:
    coordinator.post(1, "warning: late", 9, {"loss": 9.0})
    coordinator.beat(1, heartbeat(3))
    coordinator.end(1, {"steps": 9})
    assert coordinator.take() == ([Line("warning: late", {"loss": 9.0})], [], 5, {})
    assert coordinator.result() is None


def test_a_new_group_starts_without_what_the_last_one_left(coordinator: Coordinator) -> None:
    coordinator.beat(2, heartbeat(0))
    coordinator.end(2, {"steps": 8})
    assert coordinator.result() == {"steps": 8}
    coordinator.begin(generation=3, step=4)
    assert coordinator.result() is None
    assert coordinator.take() == ([], [], 4, {})


@pytest.mark.parametrize(("first", "second"), list(itertools.product(StopReason, repeat=2)))
def test_the_most_severe_request_counts(first: StopReason, second: StopReason, coordinator: Coordinator) -> None:
    coordinator.request(first)
    coordinator.request(second)
    assert coordinator.stop_request() is max(first, second)


@pytest.mark.parametrize("reason", StopReason)
def test_a_resize_is_done_with_the_next_group_and_a_stop_is_not(reason: StopReason, coordinator: Coordinator) -> None:
    coordinator.request(reason)
    coordinator.begin(generation=3, step=5)
    assert coordinator.stop_request() is (StopReason.NONE if reason is StopReason.RESIZED else reason)


def test_ranks_are_compared_by_step_then_micro_batch_then_activity() -> None:
    order = [
        Heartbeat(0, "h", "n", 1, "", step, micro_batch, activity)
        for step, micro_batch, activity in itertools.product((0, 1), (0, 1), Activity)
    ]
    assert sorted(order, key=lambda beat: beat.progress) == order
    assert str(order[2]) == "rank 0 on h (process 1): forward in step 1"
