"""On which hosts training workers run, so that the workers of each host have a data stream of their own there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.datasets.train import DECODER_MEMORY_BYTES, stream_cpus


@dataclass(frozen=True)
class Demand:
    """What workers take: one GPU or one CPU each, and the CPUs of the stream that they read."""

    most_workers: int
    decoders: int
    """Decoding actors of the most workers together; fewer workers take fewer."""
    gpus: bool

    def decoders_of(self, workers: int) -> int:
        """Decoding actors for so many of the workers."""
        return max(1, math.ceil(self.decoders * workers / self.most_workers))

    def stream_cpus(self, workers: int) -> float:
        """Logical CPUs of a stream for so many of the workers."""
        return stream_cpus(self.decoders_of(workers))

    def fits(self, workers: int, resources: Mapping[str, float]) -> bool:
        """Whether there is capacity for so many workers and one stream."""
        cpus = self.stream_cpus(workers) + (0 if self.gpus else workers)
        gpus = workers if self.gpus else 0
        return cpus <= resources.get("CPU", 0.0) and gpus <= resources.get("GPU", 0.0)

    def fits_on_host(self, workers: int, resources: Mapping[str, float]) -> bool:
        """The same where the stream's actors can be on no other host."""
        memory = self.decoders_of(workers) * DECODER_MEMORY_BYTES
        return self.fits(workers, resources) and memory <= resources.get("memory", math.inf)


def most_that_fit(permitted: Sequence[int], resources: Mapping[str, float], demand: Demand) -> int:
    """The largest permitted number of workers that has capacity beside one stream, wherever it lies; 0 for none."""
    return max((workers for workers in permitted if demand.fits(workers, resources)), default=0)


def place(workers: int, hosts: Mapping[str, Mapping[str, float]], demand: Demand) -> list[str] | None:
    """The host of each worker, on as few as possible, such that every host has capacity for a stream of its own.

    Args:
        hosts: resources by node id.

    Returns:
        Node ids, those of one host side by side; None where the hosts have no such capacity.
    """
    capacity = {host: _capacity(workers, resources, demand) for host, resources in hosts.items()}
    placed: list[str] = []
    for host in sorted(capacity, key=lambda host: (-capacity[host], host)):
        placed += [host] * min(capacity[host], workers - len(placed))
    return placed if len(placed) == workers else None


def _capacity(most: int, resources: Mapping[str, float], demand: Demand) -> int:
    """The largest number of workers up to ``most`` for which a host has capacity, with their stream."""
    units = int(resources.get("GPU" if demand.gpus else "CPU", 0.0))
    fitting = (workers for workers in range(min(most, units), 0, -1) if demand.fits_on_host(workers, resources))
    return next(fitting, 0)
