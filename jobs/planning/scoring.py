"""The plan of `evaluate` and `tag`: models on GPUs, decoders on the cores of their hosts, at the same time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.planning.cluster import Cluster
from jobs.planning.figures import Figure, basis_of, figure
from jobs.planning.memory import GIB
from jobs.planning.unit_costs import Collection, PassOverVideos, UnitCost, UnitCosts
from jobs.training.mfu import FLOPS_PER_MULTIPLY_ADD

ROW_BYTES = 120.0  # of a window in the tag tables, compressed
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ScoringPlan(PassOverVideos):
    """Views of videos through a classifier."""

    collection: Collection
    model: Figure
    """Its name."""
    views: int
    """Of a video: clips times crops, or windows."""
    decoded_views: int
    """Of a video, that are decoded: crops of a clip come from one decode."""
    decode_seconds: UnitCost
    """Of one decoded view."""
    multiply_adds: int
    """Of a view."""
    precision: str
    video_bytes: float
    """That are read of a video."""
    row_bytes: float
    """Kept of each view."""
    word: str
    """What a view is called: `views` or `windows`."""
    cluster: Cluster
    costs: UnitCosts

    @property
    def sustained(self) -> UnitCost:
        """FLOP/s of one GPU."""
        return self.cluster.gpu.sustained(self.precision, self.costs)

    @property
    def rates(self) -> dict[str, float]:
        """Videos a second by what could limit them."""
        gpus = self.cluster.gpus * self.sustained.value / (FLOPS_PER_MULTIPLY_ADD * self.multiply_adds * self.views)
        decoding = self.cluster.decode_cores / (self.decode_seconds.value * self.decoded_views)
        storage = min(self.cluster.storage_rate / self.video_bytes, self.cluster.host.storage_requests)
        return {"GPUs": gpus, "decoding": decoding, "object storage": storage}

    @property
    def speed_costs(self) -> tuple[UnitCost, ...]:
        """What the hours rest on."""
        costs = {"GPUs": self.sustained, "decoding": self.decode_seconds, "object storage": self.collection.rate}
        return (costs[self.limit],)

    def figures(self) -> Iterator[Figure]:
        """All lines."""
        costs, rate = self.speed_costs, self.rates[self.limit]
        decode = math.ceil(rate * self.decoded_views * self.decode_seconds.value)
        yield self.model
        yield Figure("videos", self.collection.clips, "", self.collection.basis)
        yield Figure(self.word, self.collection.clips * self.views, "", self.collection.basis)
        yield Figure("what saturates first", self.limit, "", basis_of(*costs))
        yield figure(f"{self.word} a second", rate * self.views, "1/s", *costs)
        yield figure("hours", self.hours, "h", *costs)
        yield figure("GPU-hours", self.hours * self.cluster.gpus, "h", *costs)
        yield figure("core-hours", self.hours * self.cluster.cores, "h", *costs)
        yield figure("cores that decode", decode, "cores", self.decode_seconds, *costs)
        yield Figure("cores there are for it", self.cluster.decode_cores, "cores")
        yield figure("read from storage", rate * self.video_bytes / 1e6, "MB/s", self.collection.rate, *costs)
        yield figure("requests to storage", rate, "1/s", *costs)
        kept = self.collection.clips * self.views * self.row_bytes / GIB
        yield Figure(f"bytes kept: a row for each of the {self.word}", kept, "GiB", "assumed")
