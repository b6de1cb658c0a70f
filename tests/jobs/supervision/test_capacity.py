"""How many workers fit, beside the CPUs that the stream of data needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.core.errors import TrainingStoppedError, UserError
from jobs.supervision import capacity as module
from jobs.supervision.capacity import WorkerCapacity, check_capacity


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster that offers what its attributes say."""
    offered = SimpleNamespace(free={"CPU": 3.0}, used={"CPU": 0.0}, hosts=["a"])

    def all_there_is() -> dict[str, float]:
        return {kind: count + offered.used.get(kind, 0.0) for kind, count in offered.free.items()}

    fake = SimpleNamespace(
        cluster_resources=all_there_is, nodes=lambda: [{"NodeID": name, "Alive": True} for name in offered.hosts]
    )
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "free_resources", lambda: offered.free)
    monkeypatch.setattr(module, "offered_resources", all_there_is)
    monkeypatch.setattr(module, "has_gpus", lambda: False)
    monkeypatch.setattr(module, "SECONDS_TO_SETTLE", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return offered


def test_as_many_as_fit_and_one_less_after_a_group_that_did_not_start(cluster: Any) -> None:
    capacity = WorkerCapacity(range(1, 3), 1)
    assert capacity.wait(1.0) == 2
    assert capacity.could_not_start(2)
    assert capacity.wait(1.0) == 1
    assert not capacity.could_not_start(1)  # fewer are not permitted: this one counts as a failure


def test_numbers_between_the_permitted_ones_are_left_out(cluster: Any) -> None:
    capacity = WorkerCapacity((2, 4, 8), 1)
    cluster.free = {"CPU": 8.0}
    assert capacity.wait(1.0) == 4
    assert capacity.could_not_start(4)
    assert capacity.wait(1.0) == 2
    cluster.hosts = ["a", "b"]
    cluster.free, cluster.used = {"CPU": 3.0}, {"CPU": 5.0}  # four workers and their stream: four more do not fit
    assert not capacity.may_grow(4)
    cluster.free = {"CPU": 4.0}
    assert capacity.may_grow(4)
    assert not capacity.may_grow(8)


def test_growing_waits_for_other_hosts_after_a_group_that_did_not_start(cluster: Any) -> None:
    capacity = WorkerCapacity(range(1, 3), 1)
    assert capacity.may_grow(1)
    assert not capacity.may_grow(2)
    capacity.could_not_start(2)
    assert not capacity.may_grow(1)
    cluster.hosts = ["a", "b"]
    assert capacity.may_grow(1)


def test_what_the_stream_lets_go_at_its_end_is_no_room_for_another_worker(cluster: Any) -> None:
    capacity = WorkerCapacity(range(1, 4), 1)
    cluster.used = {"CPU": 2.0}  # somebody else's
    assert capacity.wait(1.0) == 2
    cluster.free, cluster.used = {"CPU": 1.0}, {"CPU": 4.0}  # two workers, and the stream has ended
    assert not capacity.may_grow(2)
    cluster.free = {"CPU": 2.0}  # another host
    assert capacity.may_grow(2)
    cluster.free, cluster.used = {"CPU": 0.0}, {"CPU": 6.0}  # which somebody else takes
    assert not capacity.may_grow(2)


def test_room_that_others_leave_is_taken(cluster: Any) -> None:
    capacity = WorkerCapacity(range(1, 4), 1)
    cluster.used = {"CPU": 2.0}  # somebody else's
    assert capacity.wait(1.0) == 2
    cluster.free, cluster.used = {"CPU": 2.0}, {"CPU": 3.0}  # who has gone: two workers and their stream are left
    assert capacity.may_grow(2)


def test_a_lost_host_leaves_too_little(cluster: Any) -> None:
    capacity = WorkerCapacity(range(1, 3), 1)
    assert capacity.has(2)
    cluster.free = {"CPU": 2.0}
    assert not capacity.has(2)
    assert capacity.has(1)


def test_missing_capacity_is_reported(cluster: Any) -> None:
    cluster.free = {"CPU": 1.0}
    lines: list[str] = []
    with pytest.raises(TrainingStoppedError, match=r"workers=1: the cluster lacked capacity .* \(free: 1 CPUs\)"):
        WorkerCapacity(range(1, 3), 1).wait(0.01, echo=lines.append)
    assert lines == ["waiting for capacity for 1 workers"]
    with pytest.raises(UserError, match="workers=2, decode_actors=1: need 3 CPUs and 0 GPUs, the cluster offers 1"):
        check_capacity(range(2, 3), 1)


def test_who_no_longer_waits_gets_none(cluster: Any) -> None:
    cluster.free = {"CPU": 1.0}
    looks = iter([False, True])
    assert WorkerCapacity(range(1, 3), 1).wait(60.0, given_up=lambda: next(looks)) == 0
