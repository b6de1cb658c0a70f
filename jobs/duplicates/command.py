"""Find near-duplicates among tagged videos: encoded, cropped or cut another way; in groups with one to keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.core.cli import Command, echo
from jobs.core.errors import UserError
from jobs.duplicates.groups import grouped, read_collection, similar_pairs, to_exclude
from jobs.finding.windows import media_of, open_snapshot, refuse_without_embeddings
from jobs.reports.found_page import duplicates_page
from jobs.reports.tag_thumbnails import Shown, gallery
from pipeline.decode.config import DecodeConfig
from pipeline.media import Media
from pipeline.storage.files import join, write_bytes
from pipeline.storage.parquet import write_table

FEW_VIDEOS = 20


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """Where to look, how alike duplicates are, and where to write them."""

    output: str
    """Output of `tag`, written with `embeddings=true`."""
    min_similarity: float = 0.8
    """Least similarity to a group's representative: 1 for the same embeddings, about 0 for unrelated footage."""
    as_of: str | None = None
    """Look into an older snapshot: a version, or a time stamp such as `2026-11-21T00:00:00Z`."""
    save: str | None = None
    """Folder for `duplicates.txt` (for `prepare exclude=`), `groups.parquet` and `duplicates.html`. Default:
    `duplicates` under `output`."""
    groups_shown: int = 50
    """Groups on the page, the largest first."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    """Limits of decoding."""

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ValueError(
                f"min_similarity={self.min_similarity}: must be above 0 and at most 1; 0.8 is a good value"
            )
        if self.groups_shown < 0:
            raise ValueError(f"groups_shown={self.groups_shown}: must not be negative; 0 shows none")


def run(config: DuplicatesConfig) -> dict[str, Any]:
    """Compare all videos; write the list, the groups and the page."""
    snapshot = open_snapshot(config.output, config.as_of)
    refuse_without_embeddings(snapshot)
    videos = read_collection(snapshot)
    if len(videos.uris) < FEW_VIDEOS:
        echo(f"only {len(videos.uris)} videos: likeness is relative to a collection, so expect mistakes", warning=True)
    groups = grouped(videos, similar_pairs(videos, config.min_similarity))
    listed = to_exclude(groups)
    refuse_unlistable(snapshot.output, listed)
    folder = config.save or join(snapshot.output, "duplicates")
    files = {name: join(folder, name) for name in ("duplicates.txt", "groups.parquet", "duplicates.html")}
    write_bytes(files["duplicates.txt"], "".join(f"{uri}\n" for uri in listed).encode())
    write_table(files["groups.parquet"], groups)
    facts = {"output": snapshot.output, "snapshot": f"as_of={snapshot.version}"}
    shown = list(group_strips(groups, config, media_of(snapshot)))
    title = f"{len(listed):,} near-duplicates among {len(videos.uris):,} videos"
    write_bytes(files["duplicates.html"], duplicates_page(title, facts, shown))
    return {"videos": len(videos.uris), "groups": len(groups) - len(listed), "duplicates": len(listed), **files}


def refuse_unlistable(output: str, uris: list[str]) -> None:
    """`UserError` for a name that no list with a name a line can hold."""
    if odd := [uri for uri in uris if uri != uri.strip() or "\n" in uri]:
        raise UserError(
            f"output={output}: holds the name {odd[0]!r}, which no list with a name a line can hold; rename the file"
        )


def group_strips(groups: pa.Table, config: DuplicatesConfig, media: Media) -> Iterator[list[Shown]]:
    """The largest groups with pictures, the representative of each first."""
    counted = groups.group_by("group").aggregate([([], "count_all")])
    counted = counted.sort_by([("count_all", "descending"), ("group", "ascending")])
    rows = groups.to_pylist()
    for number in counted["group"].to_pylist()[: config.groups_shown]:
        yield list(gallery([row for row in rows if row["group"] == number], config.decode, media))


main = Command("duplicates", DuplicatesConfig, run, description=__doc__ or "", keep_report=False)
