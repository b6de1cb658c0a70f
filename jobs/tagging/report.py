"""The figures of a tagging job and its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.reports.tag_page import VIDEO_COLUMNS, page
from jobs.reports.tag_thumbnails import choose_videos, gallery
from jobs.tagging.job import TagJob, VersionFigures
from pipeline.schema import OK, PARTIAL
from pipeline.storage.files import join, write_bytes
from pipeline.tagging.reader import last_commit, read_videos
from pipeline.tagging.source import SourceListing


def summary(output: str, listing: SourceListing, figures: Sequence[VersionFigures]) -> dict[str, Any]:
    """The content of the output now, and the work of this run."""
    commit = last_commit(output) or {"version": -1}
    videos = read_videos(output, ["status", "error_class"]) if commit["version"] >= 0 else None
    statuses = Counter(videos["status"].to_pylist() if videos else ())
    reasons = Counter(videos["error_class"].drop_null().to_pylist() if videos else ())
    windows = sum(figure.windows for figure in figures)
    seconds = sum(figure.seconds for figure in figures)
    return {
        "nothing_new": not figures,
        "version": commit["version"],
        "videos": statuses.total(),
        "failed_videos": statuses.total() - statuses[OK] - statuses[PARTIAL],
        "videos_by_status": dict(statuses.most_common()),
        "failures_by_reason": dict(reasons.most_common()),
        "files_skipped": dict(listing.skipped),
        "windows": windows,
        "chunks_done": sum(figure.chunks for figure in figures),
        "chunks_skipped": sum(figure.chunks_skipped for figure in figures),
        "chunks_done_again": sum(figure.chunks_again for figure in figures),
        "seconds": seconds,
        "windows_per_second": windows / seconds if seconds else 0.0,
    }


def write_page(job: TagJob, report: Mapping[str, Any]) -> str:
    """Write ``report.html`` with the figures and a gallery; returns its path or URI."""
    videos = read_videos(job.output, VIDEO_COLUMNS)
    shown = list(gallery(choose_videos(videos, job.config.gallery_videos), job.config.decode))
    weights = f"{job.plan.weights.uri} ({job.plan.weights.digest})"
    facts = {"source": str(job.facts["source"]), "weights": weights, "run": str(job.facts["run_id"] or "")}
    uri = join(job.output, "report.html")
    write_bytes(uri, page(f"Tags of {report['videos']:,} videos", report, videos, shown, facts))
    return uri
