"""`report.html` of a tagging run: one file that needs no network, with figures, labels, a gallery and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.reports.html import duration, render
from jobs.reports.tag_thumbnails import Shown
from pipeline.media import Media

LABELS_SHOWN = 24
EXAMPLES_SHOWN = 3
LEAST_SHOWN = 0.005  # a lower score is written 0.00
VIDEO_COLUMNS = ("uri", "duration_seconds", "windows", "labels", "scores", "spans", "status", "error_class", "message")

Row = Mapping[str, Any]


def page(
    title: str,
    report: Row,
    videos: pa.Table,
    shown: Sequence[Shown],
    facts: Mapping[str, str],
    media: Media = "video",
) -> bytes:
    """The whole report.

    Args:
        report: the figures of the run (`jobs.tag.summary`).
        videos: all videos of the current snapshot, `VIDEO_COLUMNS` of them.
        shown: the gallery.
        facts: more lines of the head: source, weights, run.
        media: what was tagged; images have no duration, windows or spans to show.
    """
    labels = _first_labels(videos)
    return render(
        "tag.html",
        title=title,
        facts=facts,
        cards=_image_cards(report) if media == "image" else _cards(report, videos),
        media=media,
        statuses=_counts(videos["status"]).most_common(),
        num_videos=len(videos),
        num_labels=len(labels),
        labels=labels.most_common(LABELS_SHOWN),
        gallery=shown,
        least_shown=LEAST_SHOWN,
        failures=_failures(videos),
    )


def _cards(report: Row, videos: pa.Table) -> dict[str, str]:
    return {
        "videos": f"{report['videos']:,}",
        "of footage": duration(pc.sum(videos["duration_seconds"]).as_py() or 0.0),
        "windows in this run": f"{report['windows']:,}",
        "windows per second": f"{report['windows_per_second']:.2f}",
        "in this run": duration(report["seconds"]),
        "videos failed": f"{report['failed_videos']:,}",
        "attempts lost": f"{report['attempts_lost']:,}",
    }


def _image_cards(report: Row) -> dict[str, str]:
    return {
        "images": f"{report['videos']:,}",
        "images per second": f"{report['windows_per_second']:.2f}",
        "in this run": duration(report["seconds"]),
        "images failed": f"{report['failed_videos']:,}",
        "animations, by their first frame": f"{report['animations']:,}",
        "attempts lost": f"{report['attempts_lost']:,}",
    }


def _first_labels(videos: pa.Table) -> Counter[str]:
    labels = videos["labels"].filter(pc.greater(pc.list_value_length(videos["labels"]), 0))
    return _counts(pc.list_element(labels, 0))


def _failures(videos: pa.Table) -> list[tuple[str, int, list[Row]]]:
    """Reasons, how many videos have them, and some of these."""
    return [
        (reason, count, videos.filter(pc.equal(videos["error_class"], reason))[:EXAMPLES_SHOWN].to_pylist())
        for reason, count in _counts(videos["error_class"].drop_null()).most_common()
    ]


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})
