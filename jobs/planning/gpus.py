"""GPUs by the names that people and clouds give them, with the peaks of `jobs.training.mfu` and their memory."""

from __future__ import annotations

from typing import NamedTuple

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
