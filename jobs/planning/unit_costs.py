"""What one unit of work costs, each with where it is from: the other half of every estimate, beside the arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jobs.training.stream import (
    ASSUMED_UTILISATION,
    DECODE_SECONDS_PER_VIEW,
    MICRO_BATCHES_A_SECOND_OF_ONE_STREAM,
)

ASSUMED = "assumed"
EPYC, MEASURED_ON = "AMD EPYC", "2026-11-21"


@dataclass(frozen=True)
class UnitCost:
    """A figure, and where and when it was measured; one without is assumed."""

    value: float
    where: str = ""
    when: str = ""

    @property
    def basis(self) -> str:
        """`measured (where, when)` or `assumed`."""
        return f"measured ({self.where}, {self.when})" if self.where else ASSUMED


@dataclass(frozen=True)
class UnitCosts:
    """The unit costs of all commands, seconds of one core; the measured ones are in docs/data.md, docs/tagging.md."""

    utilisation: UnitCost = UnitCost(ASSUMED_UTILISATION)
    """Share of a GPU's peak that the model's own arithmetic reaches."""
    flops: UnitCost | None = None
    """Sustained FLOP/s of one worker; where it is known, utilisation and peak are not asked."""
    decode_seconds: UnitCost = UnitCost(DECODE_SECONDS_PER_VIEW, EPYC, MEASURED_ON)
    """A view of 16 frames from a prepared clip."""
    image_seconds: UnitCost = UnitCost(0.0058, EPYC, "2026-12-01")
    """An image: reading, decoding, augmenting."""
    window_seconds: UnitCost = UnitCost(0.024, EPYC, MEASURED_ON)
    """A window of 16 frames from an original video."""
    transcode_seconds: UnitCost = UnitCost(3.2, EPYC, MEASURED_ON)
    """A minute of video, in `prepare`; `mode=passthrough` and `reference`: `validate_seconds`."""
    validate_seconds: UnitCost = UnitCost(0.7, EPYC, MEASURED_ON)
    """A minute of video whose bytes are kept."""
    stored_share: UnitCost = UnitCost(0.80, EPYC, MEASURED_ON)
    """Bytes of a prepared clip over those of its original."""
    micro_batches_a_second: UnitCost = UnitCost(MICRO_BATCHES_A_SECOND_OF_ONE_STREAM, EPYC, MEASURED_ON)
    """What one data stream deals out, whatever its decoders."""
    source_rate: UnitCost = UnitCost(62_500.0)
    """Bytes of a second of original video: clips of 10 s have the 500 KB of docs/data.md once they are prepared."""
    image_bytes: UnitCost = UnitCost(110_000.0)
    """Bytes of an image; ImageNet's mean."""
    write_rate: UnitCost = UnitCost(200e6)
    """Bytes a second of one process that serialises, digests and uploads a checkpoint."""
    link_rate: UnitCost = UnitCost(200e9)
    """Bytes a second between the GPUs of one host."""
    restart_seconds: UnitCost = UnitCost(90.0)
    """From the loss of a worker to the first step of the next group, without reading the checkpoint."""
    replacement_seconds: UnitCost = UnitCost(600.0)
    """From the loss of a host to the moment when another one takes its place."""


@dataclass(frozen=True)
class Collection:
    """So many clips, or videos, of a length."""

    clips: int
    seconds: float
    """Of each."""
    rate: UnitCost
    """Bytes of a second of the originals."""
    basis: str
    """Where the number of clips is from."""
    classes: int | None = None
    """Where they are known."""

    @property
    def minutes(self) -> float:
        """Of all."""
        return self.clips * self.seconds / 60

    def source_bytes(self, costs: UnitCosts, *, is_video: bool = True) -> float:
        """Of an original."""
        return self.seconds * self.rate.value if is_video else costs.image_bytes.value

    def stored_bytes(self, costs: UnitCosts, *, is_video: bool = True) -> float:
        """Of a prepared clip; images are stored as they are."""
        share = costs.stored_share.value if is_video else 1.0
        return share * self.source_bytes(costs, is_video=is_video)


class PassOverVideos(ABC):
    """A plan that takes every video of a collection once, as fast as what saturates first."""

    collection: Collection

    @property
    @abstractmethod
    def rates(self) -> dict[str, float]:
        """Videos a second by what could limit them."""

    @property
    def limit(self) -> str:
        """What saturates first."""
        return min(self.rates, key=lambda name: self.rates[name])

    @property
    def hours(self) -> float:
        """Of all videos, without start-up."""
        return self.collection.clips / self.rates[self.limit] / 3600
