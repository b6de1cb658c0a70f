"""The process group of a group of workers: over which network interface gloo connects hosts, and how long it waits.

It is set up before any worker runs a line of the training loop, so here the ranks also send their first heartbeat:
one that hangs while it imports or connects is found and ended like one that hangs in a step.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend  # `TorchConfig.backend_cls` gives it; there is no public name

from jobs.core.ray_cluster import LOOPBACK
from jobs.supervision.coordinator import first_heartbeat

SECONDS_BEYOND_WATCHDOG = 600  # in which it writes the stacks of all ranks and ends them


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
        addresses = set(worker_group.execute(ray.util.get_node_ip_address))
        if len(addresses) > 1 or addresses == {LOOPBACK}:  # a local Ray: gloo need not listen to others either
            worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


def listening(addresses: Collection[str], gpus: bool) -> str:
    """Who can reach the workers' connections, which ask for no password, and how to restrict that; one line.

    Args:
        addresses: of the cluster's nodes.
        gpus: whether the workers use NCCL beside gloo.
    """
    alone = "the loopback" if set(addresses) == {LOOPBACK} else "the address that the host's name has"
    gloo = os.environ.get("GLOO_SOCKET_IFNAME") or (alone if len(addresses) == 1 else "the interface of Ray's address")
    parts = ["PyTorch's store (TCPStore) on all interfaces of the first worker's host", f"gloo on {gloo}"]
    if gpus:
        parts.append(f"NCCL on {os.environ.get('NCCL_SOCKET_IFNAME') or 'interfaces of its own choice'}")
    restricted = "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME" if gpus else "GLOO_SOCKET_IFNAME"
    return f"workers listen: {', '.join(parts)}; restrict them by {restricted}, the store by a firewall alone"


def collective_seconds(*watchdog_minutes: float) -> int:
    """How long a collective operation may wait: longer than the watchdog does, so that a hang leaves stacks."""
    return round(60 * max(watchdog_minutes)) + SECONDS_BEYOND_WATCHDOG


def limit_collectives(seconds: float) -> None:
    """Let the collective operations of all groups of this process wait so long.

    DeepSpeed makes groups of its own, which have torch's time-out whatever the first group's is: 10 minutes with NCCL,
    30 with gloo. A rank that raises after that takes the stacks of a longer hang with it.
    """
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def name_interface() -> None:
    """Name to gloo the interface that has this node's address, unless the environment names one."""
    address = ray.util.get_node_ip_address()
    for name, its_own in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in its_own):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
