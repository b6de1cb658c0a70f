"""Which interface gloo is told."""

from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train.torch.config import _TorchBackend

from jobs.supervision.coordinator import Coordinator, Heartbeat, first_heartbeat
from jobs.supervision.process_group import (
    HostsByTheirAddress,
    collective_seconds,
    limit_collectives,
    listening,
    name_interface,
)


@pytest.fixture(autouse=True)
def one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(_TorchBackend, "on_start", lambda *_: None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is restored
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


def test_the_interface_with_the_nodes_address_unless_one_is_named() -> None:
    name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    os.environ["GLOO_SOCKET_IFNAME"] = "another"
    name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "another"


@pytest.mark.parametrize(("addresses", "told"), [(["10.0.0.1", "10.0.0.2"], True), (["10.0.0.1"] * 2, False)])
def test_only_groups_over_several_hosts_are_told(addresses: list[str], told: bool) -> None:
    asked = []

    def execute(function: object) -> list[Any]:
        asked.append(function)
        return [] if function is first_heartbeat else addresses

    HostsByTheirAddress().backend_cls().on_start(SimpleNamespace(execute=execute), HostsByTheirAddress())
    assert (name_interface in asked) is told


@pytest.mark.parametrize(
    ("addresses", "gpus", "environment", "where"),
    [
        (["127.0.0.1"], False, {}, "gloo on the loopback; restrict them by GLOO_SOCKET_IFNAME,"),
        (["10.0.0.1"], False, {}, "gloo on the address that the host's name has;"),
        (
            ["10.0.0.1", "10.0.0.2"],
            True,
            {},
            "gloo on the interface of Ray's address, NCCL on interfaces of its own choice;",
        ),
        (["10.0.0.1"], True, {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth1"}, "eth1, NCCL on ib0;"),
    ],
)
def test_the_log_states_who_can_reach_the_workers(
    addresses: list[str], gpus: bool, environment: dict[str, str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = listening(addresses, gpus)
    assert line.startswith("workers listen: PyTorch's store (TCPStore) on all interfaces of the first worker's host, ")
    assert where in line
    assert line.endswith("the store by a firewall alone")


def test_every_rank_gives_a_sign_before_the_group_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hangs while it connects, or imports the training loop, can be named and ended."""
    coordinator = Coordinator()
    coordinator.begin(3, 0)
    config = HostsByTheirAddress(
        coordinator=SimpleNamespace(beat=SimpleNamespace(remote=coordinator.beat)), generation=3
    )
    heartbeats = [Heartbeat(0, "host", "node", pid, "/stacks") for pid in (11, 12)]
    seen: list[dict[int, Heartbeat]] = []
    monkeypatch.setattr(_TorchBackend, "on_start", lambda *_: seen.append(coordinator.take()[3]))
    group = SimpleNamespace(execute=lambda function: heartbeats if function is first_heartbeat else ["10.0.0.1"] * 2)
    config.backend_cls().on_start(group, config)
    assert {rank: (sign.rank, sign.pid) for rank, sign in seen[0].items()} == {0: (0, 11), 1: (1, 12)}


@pytest.mark.parametrize(("hang_minutes", "seconds"), [(2, 7800), (30, 7800), (200, 12600)])
def test_collectives_wait_longer_than_the_watchdog(hang_minutes: float, seconds: int) -> None:
    """Also than while a checkpoint is written, for which it waits 120 minutes."""
    assert collective_seconds(hang_minutes, 120) == seconds


def test_groups_that_others_made_wait_as_long() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=9))
    try:
        groups = [dist.group.WORLD, dist.new_group([0])]
        limit_collectives(7800)
        backends = [group._get_backend(torch.device("cpu")) for group in groups if group]
        assert [backend.options._timeout.total_seconds() for backend in backends] == [7800, 7800]
    finally:
        dist.destroy_process_group()
