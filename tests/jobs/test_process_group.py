"""Which interface gloo is told."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray
from ray.train.torch.config import _TorchBackend

from jobs.process_group import HostsByTheirAddress, name_interface


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

    def execute(function: object) -> list[str]:
        asked.append(function)
        return addresses

    HostsByTheirAddress().backend_cls().on_start(SimpleNamespace(execute=execute), HostsByTheirAddress())
    assert (name_interface in asked) is told
