"""The process group of a group of workers: over which network interface gloo connects hosts.

It is set up before any worker runs a line of the training loop, so here the ranks also send their first heartbeat:
one that hangs while it imports or connects is found and ended like one that hangs in a step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend  # `TorchConfig.backend_cls` gives it; there is no public name

from jobs.supervision.coordinator import first_heartbeat


@dataclass
class HostsByTheirAddress(TorchConfig):  # type: ignore[misc]
    """Ray Train's process group, over the interfaces that Ray itself uses.

    gloo would take the address that a host's name resolves to. On many hosts that is the loopback (`/etc/hosts`), and
    workers of other hosts are refused.
    """

    coordinator: Any = None
    """Handle of the `jobs.supervision.coordinator.Coordinator` that the ranks send heartbeats to."""
    generation: int = 0
    """Of the group, as the coordinator knows it."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the group up."""
        return _InterfaceBackend


class _InterfaceBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: HostsByTheirAddress) -> None:
        for rank, heartbeat in enumerate(worker_group.execute(first_heartbeat)):
            backend_config.coordinator.beat.remote(backend_config.generation, replace(heartbeat, rank=rank))
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


def name_interface() -> None:
    """Name to gloo the interface that has this node's address, unless the environment names one."""
    address = ray.util.get_node_ip_address()
    for name, its_own in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in its_own):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
