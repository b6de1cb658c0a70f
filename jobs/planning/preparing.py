"""The plan of `prepare`, which needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.planning.cluster import Cluster
from jobs.planning.figures import Figure, basis_of, figure
from jobs.planning.memory import GIB
from jobs.planning.unit_costs import Collection, PassOverVideos, UnitCost, UnitCosts
from pipeline.media import Media
from pipeline.transcode.config import Mode

DRIVER_CORES = 1


@dataclass(frozen=True)
class PreparingPlan(PassOverVideos):
    """A collection to be validated, transcoded and stored on all cores."""

    collection: Collection
    media: Media
    mode: Mode
    cluster: Cluster
    costs: UnitCosts

    @property
    def core_seconds(self) -> UnitCost:
        """Of a video or image."""
        if self.media == "image":
            return self.costs.image_seconds
        cost = self.costs.transcode_seconds if self.mode == "transcode" else self.costs.validate_seconds
        return UnitCost(cost.value * self.collection.seconds / 60, cost.where, cost.when)

    @property
    def stored_bytes(self) -> float:
        """Of a clip."""
        is_video = self.media == "video"
        if self.mode == "transcode":
            return self.collection.stored_bytes(self.costs, is_video=is_video)
        return 0.0 if self.mode == "reference" else self.collection.source_bytes(self.costs, is_video=is_video)

    @property
    def rates(self) -> dict[str, float]:
        """Videos a second by what could limit them."""
        moved = self.collection.source_bytes(self.costs, is_video=self.media == "video") + self.stored_bytes
        cores = max(1, self.cluster.cores - DRIVER_CORES) / self.core_seconds.value
        storage = min(self.cluster.storage_rate / moved, self.cluster.host.storage_requests)
        return {"cores": cores, "object storage": storage}

    def figures(self) -> Iterator[Figure]:
        """All lines."""
        rate, bytes_each = self.rates[self.limit], self.collection.rate
        costs = (self.core_seconds if self.limit == "cores" else bytes_each,)
        source = self.collection.source_bytes(self.costs, is_video=self.media == "video")
        yield Figure(f"{self.media}s", self.collection.clips, "", self.collection.basis)
        yield Figure("what saturates first", self.limit, "", basis_of(*costs))
        yield figure(f"{self.media}s a second", rate, "1/s", *costs)
        yield figure("hours", self.hours, "h", *costs)
        yield Figure("GPU-hours", 0.0, "h")
        yield figure("core-hours", self.hours * self.cluster.cores, "h", *costs)
        yield figure("read from storage", rate * source / 1e6, "MB/s", bytes_each, *costs)
        yield figure("written to storage", rate * self.stored_bytes / 1e6, "MB/s", bytes_each, *costs)
        yield figure("requests to storage", rate, "1/s", *costs)
        yield figure("bytes kept: prepared set", self.collection.clips * self.stored_bytes / GIB, "GiB", bytes_each)
