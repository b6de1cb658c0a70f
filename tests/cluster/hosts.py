"""Two hosts on one machine: network and mount namespaces, with addresses and file systems of their own.

                     bridge 10.77.0.254 (this machine: storage server, tests)
                       │              │
    host a 10.77.0.1 ──┘              └── host b 10.77.0.2
    own /tmp, /dev/shm, home              own /tmp, /dev/shm, home

Needs root and `ip` (iproute2). Everything is taken down at the end, also after a test that failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

BRIDGE = "hieratest0"
GATEWAY = "10.77.0.254"
PRIVATE = ("/tmp", "/dev/shm")
RAY = str(Path(sys.executable).with_name("ray"))
SECONDS_TO_START = 90.0


def missing_for_hosts() -> str:
    """What this machine lacks for hosts in namespaces; empty when nothing."""
    if os.geteuid() != 0:
        return "root"
    if Path(__file__).is_relative_to("/tmp"):
        return "a checkout outside /tmp, which every host has of its own"
    return "" if shutil.which("ip") and shutil.which("unshare") and shutil.which("nsenter") else "iproute2, util-linux"


@dataclass(frozen=True)
class Host:
    """One host: a process of its own that keeps its namespaces, until it is killed."""

    name: str
    address: str
    keeper: subprocess.Popen[bytes]
    environment: dict[str, str]

    @property
    def link(self) -> str:
        """Its cable's end at the bridge."""
        return f"hier-{self.name}"

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs on this host."""
        return ["nsenter", "--target", str(self.keeper.pid), "--net", "--mount", "--", *arguments]

    def start(self, *arguments: str, cwd: str | None = None) -> subprocess.Popen[str]:
        """A command in the background, its output kept."""
        return subprocess.Popen(
            self.command(*arguments),
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
        )

    def run(self, *arguments: str, cwd: str | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            cwd=cwd,
        )

    def cut_off(self) -> None:
        """Pull its cable: nothing arrives any more, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def plug_in(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self.link, "up")

    def end_processes(self) -> None:
        """Kill at once all that runs on this host; the host itself stays."""
        namespace = os.readlink(f"/proc/{self.keeper.pid}/ns/net")
        killed = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.pid != self.keeper.pid and os.readlink(f"/proc/{process.pid}/ns/net") == namespace:
                    process.kill()
                    killed.append(process)
        psutil.wait_procs(killed, timeout=10)


@contextlib.contextmanager
def two_hosts(environment: Mapping[str, str]) -> Iterator[tuple[Host, Host]]:
    """Hosts a and b, joined by a bridge.

    Args:
        environment: what the processes of both hosts get besides PATH; nothing else of this process is handed on.
    """
    with contextlib.ExitStack() as stack:
        _add_link(BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "delete", BRIDGE)
        _ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield (
            stack.enter_context(_host("a", "10.77.0.1", environment)),
            stack.enter_context(_host("b", "10.77.0.2", environment)),
        )


@contextlib.contextmanager
def _host(name: str, address: str, environment: Mapping[str, str]) -> Iterator[Host]:
    mounts = " && ".join(f"mount -t tmpfs tmpfs {place}" for place in PRIVATE)
    script = f"{mounts} && mkdir /tmp/home && echo ready && exec sleep infinity"
    keeper = subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
    )
    base = {"PATH": os.environ["PATH"], "HOME": "/tmp/home", "LANG": "C.UTF-8"}
    host = Host(name, address, keeper, {**base, **environment})
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n", "mounting needs more rights than this user has"
        inside = f"{host.link}-in"
        _add_link(host.link, "type", "veth", "peer", "name", inside, "netns", str(keeper.pid))
        _ip("link", "set", host.link, "master", BRIDGE, "up")
        for arguments in (("link", "set", "lo", "up"), ("address", "add", f"{address}/24", "dev", inside)):
            host.run("ip", *arguments).check_returncode()
        host.run("ip", "link", "set", inside, "up").check_returncode()
        yield host
    finally:
        host.end_processes()
        keeper.kill()
        keeper.wait()


def start_ray(host: Host, head: Host | None, cpus: int) -> None:
    """Join a host to the head's cluster; without a head it becomes one, with a dashboard for jobs."""
    if head is None:
        role = ["--head", "--port=6399", f"--dashboard-host={host.address}"]
    else:
        role = [f"--address={head.address}:6399"]
    common = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--object-store-memory=500000000"]
    started = host.run(RAY, "start", *role, *common, "--disable-usage-stats", seconds=SECONDS_TO_START)
    assert started.returncode == 0, started.stdout + started.stderr


def wait_for(happened: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until a function gives something true."""
    ends_at = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends_at, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


def _add_link(name: str, *what: str) -> None:
    """Make a link anew: one of that name is left of a run that was killed."""
    subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
    _ip("link", "add", name, *what)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
