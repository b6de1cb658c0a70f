"""The figures of a tagging job and its page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.reports.tag_page import VIDEO_COLUMNS, page
from jobs.reports.tag_thumbnails import choose_videos, gallery
from jobs.tagging.job import Figures, TagJob
from pipeline.schema import OK, PARTIAL
from pipeline.storage.delta import open_table
from pipeline.storage.files import join, write_bytes
from pipeline.tagging.reader import read_videos
from pipeline.tagging.schema import TAGS
from pipeline.tagging.source import SourceListing


def summary(job: TagJob, listing: SourceListing, figures: Figures | None) -> dict[str, Any]:
    """The content of the output now, and the work of this run."""
    table = open_table(join(job.output, TAGS))
    videos = read_videos(job.output, ["status", "error_class", "frames"]) if table else None
    statuses = counts(videos["status"]) if videos else {}
    work = figures or Figures()
    return {
        "nothing_new": figures is None,
        "version": table.version if table else -1,
        "as_of": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "videos": sum(statuses.values()),
        "failed_videos": sum(statuses.values()) - statuses.get(OK, 0) - statuses.get(PARTIAL, 0),
        "videos_by_status": statuses,
        "failures_by_reason": counts(videos["error_class"].drop_null()) if videos else {},
        **({"animations": animations(videos)} if job.plan.weights.media == "image" else {}),
        "files_skipped": dict(listing.skipped),
        "videos_done": work.videos,
        "videos_deleted": work.deleted,
        "windows": work.windows,
        "attempts_lost": job.log.state.lost,
        "seconds": work.seconds,
        "windows_per_second": work.windows / work.seconds if work.seconds else 0.0,
    }


def animations(videos: pa.Table | None) -> int:
    """Images of which the first of several frames or pages was tagged."""
    if videos is None:
        return 0
    several = pc.and_(pc.greater(videos["frames"], 1), pc.equal(videos["status"], OK))
    return int(pc.sum(several).as_py() or 0)


def counts(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, the commonest first."""
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def write_page(job: TagJob, report: Mapping[str, Any]) -> str:
    """Write ``report.html`` with the figures and a gallery; returns its path or URI."""
    videos, media = read_videos(job.output, VIDEO_COLUMNS), job.plan.weights.media
    chosen = choose_videos(videos, job.config.gallery_videos)
    shown = list(gallery(chosen, job.config.decode, media))
    weights = f"{job.plan.weights.uri} ({job.plan.weights.digest})"
    facts = {"source": job.facts["source"], "weights": weights, "run": str(job.columns["run_id"] or "")}
    facts["snapshot"] = f"as_of={report['as_of']}"
    uri = join(job.output, "report.html")
    title = f"Tags of {report['videos']:,} {media}s"
    write_bytes(uri, page(title, report, videos, shown, facts, media))
    return uri
