"""Find windows of tagged videos: those that look like a moment of a video, or those with a label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.core.cli import Command
from jobs.finding.likeness import Means, windows_like
from jobs.finding.nearest import labelled
from jobs.finding.query import Moment, OutsideConfig
from jobs.finding.windows import media_of, open_snapshot
from jobs.reports.found_page import search_page
from jobs.reports.tag_thumbnails import gallery
from jobs.runs.tracking_config import TrackingConfig
from pipeline.decode.config import DecodeConfig
from pipeline.storage.files import join, write_bytes
from pipeline.storage.parquet import write_table
from pipeline.tagging.reader import TagSnapshot


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What to find, where, and where to write the answer."""

    output: str
    """Output of `tag`; for `like` written with `embeddings=true`."""
    like: str | None = None
    """A moment, as `video.mp4@12.5s`: of a video of the table (its URI or the end of it), or of any other file."""
    label: str | None = None
    """Instead of `like`: the windows with the highest scores of a label."""
    min_score: float = 0.0
    """Lowest score of `label`."""
    count: int = 24
    """Windows to find at most."""
    as_of: str | None = None
    """Search an older snapshot: a version, or a time stamp such as `2026-11-21T00:00:00Z`."""
    page: str | None = None
    """Path or URI of the page. Default: `search.html` under `output`."""
    save: str | None = None
    """Path or URI for the found windows as Parquet. Default: not written."""
    init: str | None = None
    """Weights of the tags, for a file outside the table. Default: those that the tagging job was given."""
    exact_windows: int = 1_000_000
    """Most windows that are compared one by one; above, an index is made once and used (`pip install .[search]`)."""
    index: str | None = None
    """Local folder of the index. Default: `index` under a local `output`."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    """Limits of decoding."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow server of weights that are named `models:/...`."""

    def __post_init__(self) -> None:
        if (self.like is None) == (self.label is None):
            raise ValueError(f"like={self.like}: exactly one of like and label must be set; give one of them")
        if self.like is not None:
            Moment.of(self.like)
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score={self.min_score}: must lie between 0 and 1; it is a share")
        for key in ("count", "exact_windows"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1; give a larger number")


def run(config: SearchConfig) -> dict[str, Any]:
    """Search, write the page and perhaps the table."""
    snapshot = open_snapshot(config.output, config.as_of)
    found = find(config, snapshot)
    page = config.page or join(snapshot.output, "search.html")
    facts = {"output": snapshot.output, "snapshot": f"as_of={snapshot.version}"}
    shown = list(gallery(found.to_pylist(), config.decode, media_of(snapshot)))
    write_bytes(page, search_page(title_of(config), facts, shown))
    if config.save is not None:
        write_table(config.save, found)
    best = found.column(found.num_columns - 1)
    saved = {} if config.save is None else {"save": config.save}
    extremes = {"highest": best[0].as_py(), "lowest": best[-1].as_py()} if len(found) else {}
    return {"windows": len(snapshot), "found": len(found), **extremes, "page": page, **saved}


def find(config: SearchConfig, snapshot: TagSnapshot) -> pa.Table:
    """The found windows, the best first."""
    if config.like is None:
        return labelled(snapshot, str(config.label), config.min_score, config.count)
    outside = OutsideConfig(init=config.init, decode=config.decode, tracking=config.tracking)
    means = Means(config.exact_windows, config.index)
    return windows_like(Moment.of(config.like), snapshot, config.count, means, outside)


def title_of(config: SearchConfig) -> str:
    """What was searched for."""
    return f"Windows like {config.like}" if config.like else f"Windows with the label {config.label}"


main = Command("search", SearchConfig, run, description=__doc__ or "", keep_report=False)


if __name__ == "__main__":
    main()
