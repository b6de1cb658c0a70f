"""Suggest clips to label next: uncertain ones that differ from each other, on a page to label them in the browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.core.cli import Command, echo
from jobs.core.errors import UserError
from jobs.core.text import shown as shown_text
from jobs.finding.windows import media_of, open_snapshot, refuse_without_embeddings
from jobs.reports.found_page import suggestion_page
from jobs.reports.tag_thumbnails import gallery
from jobs.suggest.choice import choose, read_pool
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.build import read_uris
from pipeline.media import Media
from pipeline.storage.files import absolute, join, write_bytes
from pipeline.storage.parquet import write_table


@dataclass(frozen=True, kw_only=True)
class SuggestConfig:
    """From which tags to suggest, and how many."""

    output: str
    """Output of `tag`, written with `embeddings=true`."""
    count: int = 100
    """Clips to suggest, one of a video at most."""
    pool: int = 10
    """The clips are chosen among the most uncertain ones, this many times `count`: more means more diversity."""
    labelled: str | None = None
    """Annotations of what is labelled already (`.csv`, `.parquet`, `.txt`, as `prepare` takes them): the videos that
    they name are not suggested, and others the less, the more they are like them."""
    as_of: str | None = None
    """Suggest from an older snapshot: a version, or a time stamp such as `2026-11-21T00:00:00Z`."""
    page: str | None = None
    """Path or URI of the page. Default: `suggest.html` under `output`."""
    save: str | None = None
    """Path or URI for the suggested clips as Parquet. Default: not written."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    """Limits of decoding."""

    def __post_init__(self) -> None:
        for key in ("count", "pool"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1; give a larger number")


def run(config: SuggestConfig) -> dict[str, Any]:
    """Choose the clips; write the page and perhaps the table."""
    snapshot = open_snapshot(config.output, config.as_of)
    refuse_without_embeddings(snapshot)
    media = media_of(snapshot)
    known = [] if config.labelled is None else labelled_uris(config.labelled, media)
    pool = read_pool(snapshot, config.count * config.pool, known)
    if not len(pool.clips):
        raise UserError(f"output={snapshot.output}: holds no scored video without a label; tag more videos")
    clips = listable(choose(pool, config.count))
    page = config.page or join(snapshot.output, "suggest.html")
    facts = {"output": snapshot.output, "snapshot": f"as_of={snapshot.version}"}
    strips = list(gallery(clips.to_pylist(), config.decode, media))
    write_bytes(page, suggestion_page(f"{len(clips)} clips to label", facts, strips, pool.labels))
    if config.save is not None:
        write_table(config.save, clips)
    saved = {} if config.save is None else {"save": config.save}
    return {"suggested": len(clips), "pool": len(pool.clips), "labelled": len(known), "page": page, **saved}


def labelled_uris(annotations: str, media: Media) -> list[str]:
    """The URIs that annotations name.

    Raises:
        ManifestError: they do not follow their convention.
    """
    parts = [part["uri"] for part in read_uris(absolute(annotations), media)]
    return [uri for part in parts for uri in part.to_pylist()]


def listable(clips: pa.Table) -> pa.Table:
    """The clips whose names a page shows as they are: of another name the CSV would name no file."""
    is_plain = [shown_text(uri) == uri for uri in clips["uri"].to_pylist()]
    if not all(is_plain):
        echo(f"{is_plain.count(False)} clips are left out: their names hold what a page does not show", warning=True)
    return clips.filter(pa.array(is_plain))


main = Command("suggest", SuggestConfig, run, description=__doc__ or "", keep_report=False)
