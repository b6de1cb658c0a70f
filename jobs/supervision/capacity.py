"""How many training workers the cluster has capacity for beside the CPUs that reading and decoding take, and where."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray.autoscaler.sdk import request_resources

from jobs.core.errors import TrainingStoppedError, UserError
from jobs.core.ray_cluster import has_gpus
from jobs.supervision.hosts import free_by_host, free_resources, offered_by_host, offered_resources
from jobs.supervision.placement import Demand, most_that_fit, place

SECONDS_TO_SETTLE = 10.0
POLL_SECONDS = 1.0
SECONDS_AFTER_FAILURE = 600.0


class WorkerCapacity:
    """The permitted numbers of workers, rising, against what the cluster has free beside their streams' CPUs.

    Args:
        decoders: decoding actors for the most workers together.
    """

    def __init__(self, permitted: Sequence[int], decoders: int) -> None:
        self._permitted = permitted
        self._most = permitted[-1]
        self.gpus = has_gpus()
        """Whether workers take GPUs; decided once, because the last host with GPUs may be the one that is lost."""
        self._demand = Demand(permitted[-1], decoders, self.gpus)
        self._failed_at, self._failed_on = -math.inf, frozenset[str]()
        self._cpus_of_others = 0.0

    @contextmanager
    def requested(self) -> Iterator[None]:
        """Request the most workers and their stream of an autoscaler, where there is one, while the context lasts.

        Otherwise it would see no demand after a host was lost, and bring no other. One such request counts per cluster.
        """
        workers = [{"GPU" if self.gpus else "CPU": 1.0}] * self._permitted[-1]
        request_resources(
            bundles=[*workers, *[{"CPU": 1.0}] * math.ceil(self._demand.stream_cpus(self._permitted[-1]))]
        )
        try:
            yield
        finally:
            request_resources(bundles=[])

    def wait(
        self,
        seconds: float,
        *,
        echo: Callable[[str], None] = lambda _: None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> int:
        """The largest number of workers that has capacity, when the last group's resources are free again.

        ``given_up``: whether the caller has stopped waiting; then the answer is 0.

        Raises:
            TrainingStoppedError: there was no capacity for the fewest in all that time.
        """
        gc.collect()  # this process may hold a stream or a controller in a circle, as an error does: they keep CPUs
        begun, logged = time.monotonic(), False
        while not given_up():
            fitting = most_that_fit(self._permitted, free_resources(), self._demand)
            waited = time.monotonic() - begun
            if fitting >= self._most or (fitting and waited > SECONDS_TO_SETTLE):
                self._cpus_of_others = _cpus(offered_resources()) - _cpus(free_resources())
                return min(fitting, self._most)
            if waited > seconds:
                raise TrainingStoppedError(
                    f"workers={self._permitted[0]}: the cluster lacked capacity for {waited / 60:.0f} minutes "
                    f"(free: {_cpus(free_resources()):g} CPUs); start the same command again later"
                )
            if waited > SECONDS_TO_SETTLE and not logged:
                echo(f"waiting for capacity for {self._permitted[0]} workers")
                logged = True
            time.sleep(POLL_SECONDS)
        return 0

    def hosts_for(self, workers: int) -> list[str] | None:
        """The host of each of the workers, when each can have a stream of its own; None: one stream for all.

        What the last group held on a host may not be free yet.
        """
        begun = time.monotonic()
        while (hosts := place(workers, free_by_host(), self._demand)) is None:
            in_vain = place(workers, offered_by_host(), self._demand) is None
            if in_vain or time.monotonic() - begun > SECONDS_TO_SETTLE:
                return None
            time.sleep(POLL_SECONDS)
        return hosts

    def could_not_start(self, workers: int) -> bool:
        """A group was not started: resources lie scattered, or a lost host is still counted. True: fewer come next."""
        self._failed_at, self._failed_on = time.monotonic(), _hosts()
        self._most = max((number for number in self._permitted if number < workers), default=workers)
        return self._most < workers

    def has(self, workers: int) -> bool:
        """Whether the hosts that are left, also those that are drained, could hold so many workers and their stream."""
        return self._demand.fits(workers, ray.cluster_resources())

    def may_grow(self, workers: int) -> bool:
        """Whether more workers than now have capacity beside those that run and their stream.

        CPUs that are free at the moment are not enough of an answer: the stream releases its own as soon as it has
        read to the end, long before the last step. So what the hosts have is counted, less what others were using
        when this group began, or can be using now. After a group that could not be started: not before the hosts have
        changed, or some minutes have passed.
        """
        more = [number - workers for number in self._permitted if number > workers]
        if not more:
            return False
        if self._failed_on == _hosts() and time.monotonic() - self._failed_at < SECONDS_AFTER_FAILURE:
            return False
        self._most = self._permitted[-1]
        free = free_resources()
        if _workers_in(free, gpus=self.gpus) < more[0]:
            return False
        cpus_of_workers = 0 if self.gpus else workers
        offered = _cpus(offered_resources())
        # Some of the others may have ended since.
        others = min(self._cpus_of_others, offered - _cpus(free) - cpus_of_workers)
        after_this_group = {"CPU": offered - others, "GPU": workers + free.get("GPU", 0.0)}
        return self._demand.fits(workers + more[0], after_this_group)


def _cpus(resources: Mapping[str, float]) -> float:
    return resources.get("CPU", 0.0)


def _hosts() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _workers_in(resources: Mapping[str, float], *, gpus: bool) -> int:
    """How many workers there are GPUs or CPUs for, without a stream."""
    return int(resources.get("GPU", 0.0) if gpus else _cpus(resources))


def check_capacity(permitted: Sequence[int], decode_actors: int) -> None:
    """Ray would wait silently for CPUs and GPUs that do not exist.

    Raises:
        UserError: the whole cluster has no capacity for the fewest workers.
    """
    offered, gpus, fewest = offered_resources(), has_gpus(), permitted[0]
    demand = Demand(permitted[-1], decode_actors, gpus)
    if not most_that_fit(permitted, offered, demand):
        needed = {"CPU": demand.stream_cpus(fewest) + (0 if gpus else fewest), "GPU": fewest if gpus else 0}
        both = [" and ".join(f"{of.get(kind, 0):g} {kind}s" for kind in needed) for of in (needed, offered)]
        raise UserError(
            f"workers={fewest}, decode_actors={decode_actors}: need {both[0]}, the cluster offers {both[1]}; "
            "use fewer, or a larger cluster"
        )
