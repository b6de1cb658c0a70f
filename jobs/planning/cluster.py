"""The machines that a plan is for: GPUs by the names that people and clouds give them, on hosts of a kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from hiera_video.rules import Checked, Rules
from jobs.checkpoints.grace_time import DEFAULT_SECONDS
from jobs.core.errors import UserError
from jobs.planning.unit_costs import UnitCost, UnitCosts
from jobs.training.mfu import peak_of

CPU = "cpu"
CPU_TFLOPS = 0.1  # one core with AVX-512 in float32 (2 x 16 x 2 operations at 1.6 GHz)
GIB_OF_A_CORE = 4.0


class Gpu(NamedTuple):
    """A kind of GPU; `cpu` is one core that trains."""

    name: str
    cuda_name: str
    """As CUDA reports it, without the brand: the key of `peak_of`."""
    memory_gib: float

    def peak_flops(self, precision: str) -> float:
        """Dense FLOP/s without sparsity.

        Raises:
            UserError: it does not compute in this precision.
        """
        if self.name == CPU:
            return CPU_TFLOPS * 1e12
        peak = peak_of(self.cuda_name, precision)
        if peak is None:
            raise UserError(f"gpu={self.name}: has no {precision}; use precision=fp32, or another GPU")
        return peak * 1e12

    def sustained(self, precision: str, costs: UnitCosts) -> UnitCost:
        """FLOP/s that one of them reaches."""
        if costs.flops is not None:
            return costs.flops
        rate = costs.utilisation.value * self.peak_flops(precision)
        return UnitCost(rate, costs.utilisation.where, costs.utilisation.when)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", "H100 SXM5", 80),
        Gpu("h200", "H200", 141),
        Gpu("b200", "B200", 180),
        Gpu("a100", "A100-SXM4-80GB", 80),
        Gpu("a100-40gb", "A100-SXM4-40GB", 40),
        Gpu("l40s", "L40S", 48),
        Gpu("l4", "L4", 24),
        Gpu("a10g", "A10G", 24),
        Gpu("v100", "V100-SXM2-32GB", 32),
        Gpu("t4", "T4", 16),
        Gpu(CPU, CPU, GIB_OF_A_CORE),
    )
}


def find_gpu(name: str) -> Gpu:
    """A kind of GPU by its name.

    Raises:
        UserError: it is not listed.
    """
    if name.lower() not in GPUS:
        raise UserError(f"gpu={name}: must be one of {', '.join(GPUS)}; use the one whose peak is nearest")
    return GPUS[name.lower()]


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
