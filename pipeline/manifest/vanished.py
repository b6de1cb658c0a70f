"""A source that no longer holds what an output was made of: more often a lost mount than a deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.manifest.errors import VanishedSourceError

FEWEST_VIDEOS = 10
EXAMPLES = 3
MAX_DELETED_SHARE = 0.2


@dataclass(frozen=True)
class Vanished:
    """The videos of an output that its source no longer holds."""

    count: int
    examples: Sequence[str]
    """URIs of a few of them."""
    of: int
    """Videos that the output holds."""
    source_is_empty: bool
    """Whether the source holds no video at all: an unmounted volume is an empty folder."""

    def refuse_above(self, max_deleted_share: float, source: str) -> None:
        """Stop before an output follows a source that has probably lost its mount.

        Raises:
            VanishedSourceError: the source is empty, or `FEWEST_VIDEOS` or more and a larger share are missing.
        """
        many = self.count >= FEWEST_VIDEOS and self.count > max_deleted_share * self.of
        empty = self.source_is_empty and self.count > 0 and max_deleted_share < 1
        if not many and not empty:
            return
        happened = "holds no video any more" if self.source_is_empty else "no longer holds many videos of the output"
        raise VanishedSourceError(
            f"max_deleted_share={max_deleted_share:g}: source={source} {happened}: {self.count} of {self.of} are "
            f"missing ({', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''}); check that the "
            "source is mounted and complete, or confirm with max_deleted_share=1"
        )


def refuse_no_share(share: float) -> None:
    """The rule of the key ``max_deleted_share``.

    Raises:
        ValueError: it is no share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"max_deleted_share={share}: must lie between 0 and 1; it is a share")
