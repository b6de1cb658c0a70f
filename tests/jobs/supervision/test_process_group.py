"""Which interface gloo is told."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.torch.config import _TorchBackend

from jobs.supervision.coordinator import Coordinator, Heartbeat, first_heartbeat
from jobs.supervision.process_group import HostsByTheirAddress, name_interface


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
