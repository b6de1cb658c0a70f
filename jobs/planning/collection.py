"""The clips or videos that a plan is for."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.planning.unit_costs import UnitCost, UnitCosts


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
