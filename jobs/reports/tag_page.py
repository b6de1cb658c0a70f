"""`report.html` of a tagging run: one file that needs no network, with figures, labels, a gallery and failures."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.redaction import without_secrets
from jobs.reports.html import render
from jobs.reports.tag_thumbnails import Shown
from pipeline.schema import OK, PARTIAL

LABELS_SHOWN = 24
EXAMPLES_SHOWN = 3
CHIPS_SHOWN = 3
STATUS_COLOURS = {OK: "var(--good)", PARTIAL: "var(--warn)"}

VIDEO_COLUMNS = ("uri", "duration_seconds", "windows", "labels", "scores", "spans", "status", "error_class", "message")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """One part of a whole, or one bar among others."""

    name: str
    count: int
    percent: float
    colour: str


@dataclass(frozen=True)
class Span:
    """When a label was seen, in percent of the video's duration."""

    left: float
    width: float
    opacity: float
    tip: str


@dataclass(frozen=True)
class Label:
    """One of a video's best labels."""

    name: str
    score: float
    colour: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Figure:
    """One video of the gallery."""

    uri: str
    name: str
    strip: bytes
    duration: str
    windows: int
    labels: Sequence[Label]


@dataclass(frozen=True)
class Failure:
    """A reason, how many videos have it, and some of them."""

    reason: str
    count: int
    examples: Sequence[Row]


def page(title: str, report: Row, videos: pa.Table, shown: Sequence[Shown], facts: Mapping[str, str]) -> bytes:
    """The whole report.

    Args:
        report: the figures of the run (`jobs.tag.summary`).
        videos: all videos of the current snapshot, `VIDEO_COLUMNS` of them.
        shown: the gallery.
        facts: more lines of the head: source, weights, run.
    """
    labels = _first_labels(videos)
    most = max(labels.values(), default=1)
    return render(
        "tag.html",
        title=title,
        facts=facts,
        cards=_cards(report, videos),
        statuses=_statuses(videos),
        num_labels=len(labels),
        labels=[Share(name, n, 100 * n / most, _colour(name)) for name, n in labels.most_common(LABELS_SHOWN)],
        gallery=[_figure(item) for item in shown],
        failures=_failures(videos),
    )


def _cards(report: Row, videos: pa.Table) -> dict[str, str]:
    return {
        "videos": f"{report['videos']:,}",
        "of footage": _duration(pc.sum(videos["duration_seconds"]).as_py() or 0.0),
        "windows in this run": f"{report['windows']:,}",
        "windows per second": f"{report['windows_per_second']:.2f}",
        "in this run": _duration(report["seconds"]),
        "videos failed": f"{report['failed_videos']:,}",
        "chunks repeated": f"{report['chunks_done_again']:,}",
    }


def _statuses(videos: pa.Table) -> list[Share]:
    return [
        Share(status, count, 100 * count / len(videos), STATUS_COLOURS.get(status, "var(--bad)"))
        for status, count in _counts(videos["status"]).most_common()
    ]


def _first_labels(videos: pa.Table) -> Counter[str]:
    labels = videos["labels"].filter(pc.greater(pc.list_value_length(videos["labels"]), 0))
    return _counts(pc.list_element(labels, 0))


def _figure(item: Shown) -> Figure:
    video = item.video
    uri = without_secrets(str(video["uri"]))  # before it is quoted as a link, which would disguise a secret
    name = uri.rsplit("/", 1)[-1]
    return Figure(
        uri=uri,
        name=urllib.parse.unquote(name) if uri.startswith("file://") else name,
        strip=item.strip,
        duration=_duration(video["duration_seconds"] or 0.0),
        windows=video["windows"],
        labels=_best_labels(video),
    )


def _best_labels(video: Row) -> list[Label]:
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in video["spans"]:
        spans[span["label"]].append(_span(span, video["duration_seconds"] or 1.0))
    best = list(zip(video["labels"], video["scores"], strict=True))[:CHIPS_SHOWN]
    return [Label(label, score, _colour(label), spans[label]) for label, score in best]


def _span(span: Row, duration: float) -> Span:
    start, end, score = span["start_seconds"], span["end_seconds"], span["score"]
    tip = f"{span['label']}: {start:.1f} to {end:.1f} s, {score:.2f}"
    return Span(100 * start / duration, 100 * (end - start) / duration, 0.25 + 0.75 * score, tip)


def _failures(videos: pa.Table) -> list[Failure]:
    return [
        Failure(reason, count, videos.filter(pc.equal(videos["error_class"], reason))[:EXAMPLES_SHOWN].to_pylist())
        for reason, count in _counts(videos["error_class"].drop_null()).most_common()
    ]


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})


def _colour(label: str) -> str:
    """The same colour for a label everywhere."""
    hue = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=2).digest(), "little") % 360
    return f"hsl({hue} 68% 52%)"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
