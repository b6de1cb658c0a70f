"""The machines that a plan is for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hiera_video.rules import Checked, Rules
from jobs.checkpoints.grace_time import DEFAULT_SECONDS
from jobs.planning.gpus import CPU, Gpu


@dataclass(frozen=True)
class HostConfig(Checked):
    """The hosts, and what they share; the defaults are of a host of 8 H100 with 192 logical CPUs."""

    gpus: int = 8
    """GPUs of a host."""
    cores: int = 192
    """CPU cores of a host."""
    network_gbit: float = 400.0
    """Gbit/s of a host to all others."""
    storage_gbit: float = 200.0
    """Gbit/s that the object storage delivers to all hosts together."""
    storage_requests: float = 5500.0
    """Requests a second that the object storage answers (Amazon S3: 5,500 a prefix)."""
    notice_seconds: float = DEFAULT_SECONDS
    """From the notice that a host is taken away to its end."""

    def rules(self) -> Rules:
        for key in ("gpus", "cores", "network_gbit", "storage_gbit", "storage_requests", "notice_seconds"):
            yield key, getattr(self, key) > 0, "must be positive; leave it out for the default"


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of a kind on hosts of a kind."""

    gpus: int
    gpu: Gpu
    host: HostConfig

    @property
    def hosts(self) -> int:
        """As few as hold the GPUs."""
        return math.ceil(self.gpus / self.host.gpus)

    @property
    def cores(self) -> int:
        """Of all hosts."""
        return self.hosts * self.host.cores

    @property
    def decode_cores(self) -> int:
        """Cores beside the workers (one each, with its copies and collectives) and a reader on every host."""
        return max(1, self.cores - self.gpus - (0 if self.gpu.name == CPU else self.hosts))

    @property
    def network_rate(self) -> float:
        """Bytes a second of one host."""
        return self.host.network_gbit * 1e9 / 8

    @property
    def storage_rate(self) -> float:
        """Bytes a second of the object storage to all hosts: it or their networks, whichever is less."""
        return min(self.host.storage_gbit * 1e9 / 8, self.hosts * self.network_rate)
