"""`report.html` of a tagging run: one file that needs no network, to be looked through with pleasure."""

from __future__ import annotations

import base64
import hashlib
import html
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.redaction import without_secrets
from jobs.reports.tag_thumbnails import Shown
from pipeline.schema import OK, PARTIAL

LABELS_SHOWN = 24
EXAMPLES_SHOWN = 3
CHIPS_SHOWN = 3
STATUS_COLOURS = {OK: "var(--good)", PARTIAL: "var(--warn)"}

VIDEO_COLUMNS = ("uri", "duration_seconds", "windows", "labels", "scores", "spans", "status", "error_class", "message")

Row = Mapping[str, Any]

STYLE = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #667085; --line: #e4e7ec; --accent: #4f46e5;
  --good: #12a594; --warn: #f5a623; --bad: #e5484d; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1218; --card: #181d27; --ink: #e8ebf2; --soft: #98a2b3;
  --line: #2a3140; --accent: #8b85ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0; font-size: 30px; letter-spacing: -0.02em; }
h2 { margin: 44px 0 14px; font-size: 19px; letter-spacing: -0.01em; }
.sub { color: var(--soft); margin: 6px 0 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 26px 0 18px; }
.card, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.card { padding: 14px 18px; }
.card b { display: block; font-size: 26px; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.card span, .soft { color: var(--soft); font-size: 13px; }
.panel { padding: 18px 20px; }
.stack { display: flex; height: 12px; border-radius: 6px; overflow: hidden; background: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 10px; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 6px; }
.bars { display: grid; grid-template-columns: minmax(90px, max-content) 1fr max-content; gap: 7px 14px;
  align-items: center; font-size: 14px; }
.bars .bar { height: 14px; border-radius: 4px; background: var(--colour); min-width: 3px; }
.bars .name { text-align: right; }
.bars .n { font-variant-numeric: tabular-nums; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 8px 12px 8px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(370px, 1fr)); gap: 18px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 14px; overflow: hidden;
  transition: transform .15s, box-shadow .15s; }
figure:hover { transform: translateY(-2px); box-shadow: 0 8px 26px rgb(0 0 0 / .14); }
figure img, .blank { display: block; width: 100%; aspect-ratio: 652 / 120; background: #000; }
.blank { display: grid; place-items: center; color: #98a2b3; font-size: 13px; background: #20242e; }
figcaption { padding: 12px 16px 16px; }
figcaption a { color: var(--ink); font-weight: 600; text-decoration: none; display: block; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
figcaption a:hover { color: var(--accent); text-decoration: underline; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 9px 0 11px; }
.chip { font-size: 13px; padding: 2px 10px; border-radius: 99px; color: var(--ink);
  background: linear-gradient(90deg, color-mix(in srgb, var(--colour) 38%, transparent) var(--score), transparent 0),
  color-mix(in srgb, var(--colour) 12%, transparent);
  border: 1px solid color-mix(in srgb, var(--colour) 45%, transparent); }
.chip b { font-weight: 600; font-variant-numeric: tabular-nums; margin-left: 5px; }
.lane { position: relative; height: 6px; margin-top: 4px; border-radius: 3px; background: var(--line); }
.lane i { position: absolute; top: 0; bottom: 0; border-radius: 3px; background: var(--colour); }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
"""


def page(title: str, report: Row, videos: pa.Table, shown: Sequence[Shown], facts: Mapping[str, str]) -> bytes:
    """The whole report.

    Args:
        report: the figures of the run (`jobs.tag.summary`).
        videos: all videos of the current view, `VIDEO_COLUMNS` of them.
        shown: the gallery.
        facts: what else to tell in the head: source, weights, run.
    """
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>",
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{STYLE}</style></head>",
        "<body><main>",
        f"<h1>{_text(title)}</h1>",
        *(f"<p class='sub'>{_text(name)}: {_text(value)}</p>" for name, value in facts.items() if value),
        *_cards(report, videos),
        *_statuses(videos),
        *_labels(videos),
        *_gallery(shown),
        *_failures(videos),
        f"<footer>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; needs no network.</footer></main></body></html>",
    ]
    return "".join(parts).encode()


def _cards(report: Row, videos: pa.Table) -> Iterator[str]:
    cards = {
        "videos": f"{report['videos']:,}",
        "of footage": _duration(pc.sum(videos["duration_seconds"]).as_py() or 0.0),
        "windows in this run": f"{report['windows']:,}",
        "windows a second": f"{report['windows_per_second']:.2f}",
        "in this run": _duration(report["seconds"]),
        "videos failed": f"{report['failed_videos']:,}",
        "blocks done again": f"{report['chunks_done_again']:,}",
    }
    yield "<div class='cards'>"
    yield from (f"<div class='card'><b>{value}</b><span>{name}</span></div>" for name, value in cards.items())
    yield "</div>"


def _statuses(videos: pa.Table) -> Iterator[str]:
    counts = _counts(videos["status"])
    yield "<div class='panel'><div class='stack'>"
    for status, count in counts.most_common():
        yield f"<span style='width:{100 * count / len(videos):.3f}%;background:{_status_colour(status)}'></span>"
    yield "</div><div class='legend'>"
    for status, count in counts.most_common():
        yield f"<span><i style='background:{_status_colour(status)}'></i>{_text(status)} {count:,}</span>"
    yield "</div></div>"


def _labels(videos: pa.Table) -> Iterator[str]:
    labels = videos["labels"].filter(pc.greater(pc.list_value_length(videos["labels"]), 0))
    counts = _counts(pc.list_element(labels, 0))
    yield f"<h2>What is in them</h2><p class='soft'>{len(counts):,} labels come first in some video"
    yield f"; the {LABELS_SHOWN} commonest:</p>" if len(counts) > LABELS_SHOWN else ":</p>"
    yield "<div class='panel bars'>"
    most = max(counts.values(), default=1)
    for label, count in counts.most_common(LABELS_SHOWN):
        yield f"<span class='name'>{_text(label)}</span><span><span class='bar' style='display:block;"
        yield f"--colour:{_colour(label)};width:{100 * count / most:.2f}%'></span></span>"
        yield f"<span class='n'>{count:,}</span>"
    yield "</div>"


def _gallery(shown: Sequence[Shown]) -> Iterator[str]:
    if not shown:
        return
    yield "<h2>A look at some of them</h2><p class='soft'>The surest of every label in turn. Bars below a video: when"
    yield " its labels were seen.</p><div class='gallery'>"
    for item in shown:
        yield from _figure(item)
    yield "</div>"


def _figure(item: Shown) -> Iterator[str]:
    video = item.video
    uri = without_secrets(str(video["uri"]))
    name = urllib.parse.unquote(uri.rsplit("/", 1)[-1]) if uri.startswith("file://") else uri.rsplit("/", 1)[-1]
    picture = f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(item.strip).decode()}'>"
    yield f"<figure>{picture if item.strip else '<div class=blank>no picture</div>'}<figcaption>"
    yield f"<a href='{_text(_link(uri))}' title='{_text(uri)}'>{_text(name)}</a>"
    windows = f"{video['windows']:,} window{'s' * (video['windows'] != 1)}"
    yield f"<span class='soft'>{_duration(video['duration_seconds'] or 0.0)}, {windows}</span>"
    yield "<div class='chips'>"
    best = list(zip(video["labels"], video["scores"], strict=True))[:CHIPS_SHOWN]
    for label, score in best:
        yield f"<span class='chip' style='--colour:{_colour(label)};--score:{100 * score:.0f}%'>{_text(label)}"
        yield f"<b>{score:.2f}</b></span>"
    yield "</div>"
    yield from _lanes(video, [label for label, _ in best])
    yield "</figcaption></figure>"


def _lanes(video: Row, labels: Sequence[str]) -> Iterator[str]:
    """When each label was seen, as a bar along the video."""
    length = video["duration_seconds"] or 1.0
    spans: dict[str, list[Row]] = defaultdict(list)
    for span in video["spans"]:
        spans[span["label"]].append(span)
    for label in labels:
        yield f"<div class='lane' style='--colour:{_colour(label)}' title='{_text(label)}'>"
        for span in spans[label]:
            left, width = (
                100 * span["start_seconds"] / length,
                100 * (span["end_seconds"] - span["start_seconds"]) / length,
            )
            tip = f"{label}: {span['start_seconds']:.1f} to {span['end_seconds']:.1f} s, {span['score']:.2f}"
            yield f"<i style='left:{left:.2f}%;width:{width:.2f}%;opacity:{0.25 + 0.75 * span['score']:.2f}'"
            yield f" title='{_text(tip)}'></i>"
        yield "</div>"


def _failures(videos: pa.Table) -> Iterator[str]:
    failed = _counts(videos["error_class"].drop_null())
    yield "<h2>What could not be tagged</h2><div class='panel'>"
    if not failed:
        yield "<span class='soft'>Nothing: every window of every video has its labels.</span></div>"
        return
    yield "<table><tr><th>reason</th><th>videos</th><th>for example</th></tr>"
    for reason, count in failed.most_common():
        rows = videos.filter(pc.equal(videos["error_class"], reason)).slice(0, EXAMPLES_SHOWN).to_pylist()
        examples = "<br>".join(f"{_text(row['uri'])} <span class='soft'>{_text(row['message'])}</span>" for row in rows)
        yield f"<tr><td><b>{_text(reason)}</b></td><td>{count:,}</td><td>{examples}</td></tr>"
    yield "</table></div>"


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})


def _link(uri: str) -> str:
    return uri if "://" in uri else f"file://{urllib.parse.quote(uri)}"


def _colour(label: str) -> str:
    """The same colour for a label wherever it stands."""
    hue = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=2).digest(), "little") % 360
    return f"hsl({hue} 68% 52%)"


def _status_colour(status: str) -> str:
    return STATUS_COLOURS.get(status, "var(--bad)")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _text(value: Any) -> str:
    return html.escape(without_secrets(str(value)))
