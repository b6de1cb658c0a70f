"""What a real, small cluster offers while one of its hosts is drained."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from jobs.supervision.hosts import draining_hosts, free_resources, hosts_of_actors, offered_resources

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray.shutdown()  # what other modules share
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_a_drained_host_offers_nothing(cluster: Cluster) -> None:
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    assert offered_resources()["CPU"] == free_resources()["CPU"] == 3
    assert not draining_hosts()

    @ray.remote(num_cpus=1)
    class Busy:
        def host(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    actors = [Busy.remote() for _ in range(3)]  # one on each CPU: an idle host ends at once
    hosts = ray.get([actor.host.remote() for actor in actors])
    assert second.node_id in hosts
    assert hosts_of_actors() == {actor._actor_id.hex(): host for actor, host in zip(actors, hosts, strict=True)}
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    host = ["--node-id", second.node_id, "--deadline-remaining-seconds", "120"]
    subprocess.run([RAY, "drain-node", "--address", cluster.address, *host, *reason], check=True)
    ends_at = time.monotonic() + 30
    while not draining_hosts():
        assert time.monotonic() < ends_at
        time.sleep(0.1)
    assert draining_hosts() == {second.node_id}
    assert offered_resources()["CPU"] == 1
    assert free_resources().get("CPU", 0) == 0
    assert ray.cluster_resources()["CPU"] == 3
