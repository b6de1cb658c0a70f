"""What is checked across the hosts of a cluster: one actor a host, then comparisons on the driver."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.core.cli import versions
from jobs.doctor.findings import Finding, found
from jobs.doctor.host import host_findings
from pipeline.storage.errors import first_line

DRIVER = "driver"
ANSWER_SECONDS = 40.0
LARGEST_SKEW = 2.0
REDUCED_BYTES = 32 * 2**20
SLOWEST_MB_PER_SECOND = 10.0


class HostProbe:
    """The doctor's hands on one host."""

    def name(self) -> str:
        """The host's name."""
        return socket.gethostname()

    def clock(self) -> float:
        """This host's time, seconds since 1970."""
        return time.time()

    def address(self) -> tuple[str, int]:
        """This host's address, and a port that is free now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def versions(self) -> dict[str, str]:
        """Of Python and of the packages that decide results."""
        return versions()

    def token(self) -> bool:
        """Whether this host's Ray asks for a token."""
        return os.environ.get("RAY_AUTH_MODE") == "token"

    def findings(self, storage: str | None, session: str, object_store_bytes: float) -> list[Finding]:
        """All checks of the host itself."""
        return host_findings(storage, session, object_store_bytes)

    def all_reduce(self, rank: int, hosts: int, address: str, port: int) -> float:
        """MB/s of a sum over all hosts, through CPU memory and the network that training uses."""
        dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=hosts)
        try:
            data = torch.ones(REDUCED_BYTES // 4)
            dist.all_reduce(data[:1])
            started = time.monotonic()
            dist.all_reduce(data)
            if data[-1] != hosts:
                raise RuntimeError(f"the sum over {hosts} hosts is {data[-1]:g}")
            return REDUCED_BYTES / 1e6 / (time.monotonic() - started)
        finally:
            dist.destroy_process_group()


def cluster_findings(storage: str | None) -> list[Finding]:
    """Every check of every host; a host that does not answer in time is a finding, too."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    probes = {node["NodeID"]: _probe(node["NodeID"]) for node in nodes}
    answers = {
        node["NodeID"]: probes[node["NodeID"]].findings.remote(
            storage, session_folder(node), node["Resources"].get("object_store_memory", 0.0)
        )
        for node in nodes
    }
    ready, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=ANSWER_SECONDS)
    findings, answering = list[Finding](), list[tuple[str, Any]]()
    for node in nodes:
        name, answer = node["NodeManagerHostname"], answers[node["NodeID"]]
        try:
            if answer not in ready:
                raise TimeoutError(f"no answer in {ANSWER_SECONDS:g} s")
            findings += ray.get(answer)
            answering.append((name, probes[node["NodeID"]]))
        except (RayError, TimeoutError) as error:
            remedy = "look at the host's load and at Ray's logs there"
            findings.append(Finding(name, "answers", False, first_line(error), remedy))
    findings += version_findings([(host, ray.get(actor.versions.remote())) for host, actor in answering])
    findings += [clock_finding(host, *_clock(actor)) for host, actor in answering]
    findings += [token_finding(host, ray.get(actor.token.remote())) for host, actor in answering]
    return [*findings, *_all_reduce(answering)]


def session_folder(node: Mapping[str, Any]) -> str:
    """The folder of Ray's session on a node: two above its object store's socket."""
    return str(Path(node["ObjectStoreSocketName"]).parents[1])


def _probe(node: str) -> Any:
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(HostProbe).options(scheduling_strategy=on_node).remote()


def version_findings(by_host: Sequence[tuple[str, Mapping[str, str]]]) -> list[Finding]:
    """Every host must have the driver's versions."""
    here, findings = versions(), list[Finding]()
    for host, there in by_host:
        other = [f"{name} {there.get(name)}, driver {version}" for name, version in here.items()
                 if there.get(name) != version]  # fmt: skip
        detail = (
            "; ".join(other) or f"Python {here['python']}, Ray {here['ray']}, torch {here['torch']}, as the driver's"
        )
        findings.append(found(host, "versions", bool(other), detail, "install the same image or constraints.txt there"))
    if here["deepspeed"] == "not installed":
        findings.append(Finding(DRIVER, "DeepSpeed", False, "not installed", "install with the extra `deepspeed`"))
    return findings


def _clock(actor: Any) -> tuple[float, float]:
    """How far a host's clock is ahead, seconds, and how exactly that is known."""
    before = time.time()
    there = ray.get(actor.clock.remote())
    after = time.time()
    return there - (before + after) / 2, (after - before) / 2


def clock_finding(host: str, ahead: float, error: float) -> Finding:
    """Signatures of object storage, time stamps of alerts and heartbeats compare clocks."""
    detail = f"{ahead:+.2f} s against the driver (±{error:.2f} s)"
    remedy = f"start a time service (chrony, systemd-timesyncd): at most {LARGEST_SKEW:g} s may lie between hosts"
    return found(host, "clock", abs(ahead) - error > LARGEST_SKEW, detail, remedy)


def token_finding(host: str, asks: bool) -> Finding:
    """Without a token anyone who reaches Ray's ports runs code there."""
    remedy = "set RAY_AUTH_MODE=token and a token (`ray get-auth-token --generate`) before `ray start` on every host"
    return found(host, "token", not asks, "asked for" if asks else "not asked for", remedy)


def _all_reduce(answering: Sequence[tuple[str, Any]]) -> list[Finding]:
    if len(answering) < 2:
        return []
    hosts, actors = [host for host, _ in answering], [actor for _, actor in answering]
    address, port = ray.get(actors[0].address.remote())
    calls = [actor.all_reduce.remote(rank, len(actors), address, port) for rank, actor in enumerate(actors)]
    try:
        rates = ray.get(calls, timeout=ANSWER_SECONDS)
        return [rate_finding(host, rate) for host, rate in zip(hosts, rates, strict=True)]
    except RayError as error:
        remedy = (
            "open all ports between the hosts; set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME where there are several"
        )
        return [Finding(", ".join(hosts), "all-reduce", False, first_line(error), remedy)]


def rate_finding(host: str, rate: float) -> Finding:
    """What the network between hosts carries."""
    remedy = (
        f"less than {SLOWEST_MB_PER_SECOND:g} MB/s: look for a slow interface (GLOO_SOCKET_IFNAME) or a shared link"
    )
    return found(host, "all-reduce", rate < SLOWEST_MB_PER_SECOND, f"{rate:.0f} MB/s (gloo)", remedy)
