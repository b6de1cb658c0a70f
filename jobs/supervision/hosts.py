"""What the hosts of a cluster offer, without those whose end is announced.

Ray drains a host when a spot instance is taken back, when the autoscaler removes it, and at a SIGTERM to its
`ray start --block` (`scancel`, a pod that is evicted): it stays until its deadline, and gets no new work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import ray
from ray._private import state  # no public API lists each host's resources and actors, or whether it drains


def draining_hosts() -> frozenset[str]:
    """Node ids of the hosts whose end is announced."""
    return frozenset(state.state.get_draining_nodes())


def hosts_of_actors() -> dict[str, str]:
    """Node id by actor id, of the actors of this job that live: workers, their controller, readers and decoders."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.state.actor_table(None, job, "ALIVE")
    return {actor_id: actor["Address"]["NodeID"] for actor_id, actor in actors.items()}


def offered_resources() -> dict[str, float]:
    """What the hosts that stay have, free or not."""
    return _summed(offered_by_host())


def free_resources() -> dict[str, float]:
    """What is free on the hosts that stay."""
    return _summed(free_by_host())


def offered_by_host() -> dict[str, Mapping[str, float]]:
    """What each host that stays has, free or not, by node id."""
    return _hosts_that_stay(state.total_resources_per_node())


def free_by_host() -> dict[str, Mapping[str, float]]:
    """What is free on each host that stays, by node id."""
    return _hosts_that_stay(state.available_resources_per_node())


def _hosts_that_stay(by_host: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    draining = draining_hosts()
    return {host: resources for host, resources in by_host.items() if host not in draining}


def _summed(by_host: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for resources in by_host.values():
        total.update(resources)
    return dict(total)
