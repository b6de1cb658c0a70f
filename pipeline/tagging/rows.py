"""From scores to rows: the windows of a video, and of the whole video its labels, time spans and first error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.schema import FAILED, OK, PARTIAL
from pipeline.tagging.windows import WindowGrid, unit_id

Row = Mapping[str, Any]
CUT_OFF = "damaged"
"""Error class of a video whose file ends before its container says; every window that it holds was scored."""


@dataclass(frozen=True)
class ScoredWindow:
    """One window with its labels, or with the reason why it has none."""

    index: int | None
    """None of a video that could not be opened at all."""
    labels: Sequence[str] = ()
    scores: Sequence[float] = ()
    status: str = OK
    message: str = ""
    embedding: Sequence[float] | None = None


def tag_rows(video: Row, windows: Sequence[ScoredWindow], grid: WindowGrid, common: Row) -> list[dict[str, Any]]:
    """Rows of `tag_schema`, one for every window of one video.

    Args:
        video: ``uri``, ``video_id``, ``content_version`` and, where it could be opened, ``duration_seconds``.
        windows: all of them, in order.
        common: further columns, the same in every row.
    """
    names = {name: video[name] for name in ("uri", "video_id", "content_version")}
    counted = sum(window.index is not None for window in windows)
    names["unit_id"] = unit_id(video["uri"], video["content_version"], counted)
    return [{**names, **_times(window, video, grid), **_answer(window), **common} for window in windows]


def _times(window: ScoredWindow, video: Row, grid: WindowGrid) -> dict[str, Any]:
    if window.index is None:
        return {"window_index": None, "start_seconds": None, "end_seconds": None}
    start, end = grid.span(window.index, video["duration_seconds"])
    return {"window_index": window.index, "start_seconds": start, "end_seconds": end}


def _answer(window: ScoredWindow) -> dict[str, Any]:
    return {name: getattr(window, name) for name in ("labels", "scores", "status", "message", "embedding")}


def video_row(video: Row, rows: Sequence[Row], common: Row) -> dict[str, Any]:
    """The row of `VIDEO_SCHEMA` that follows from all rows of a video (`tag_rows`).

    Args:
        video: as there, and its ``frames``; ``cut_off`` describes what is missing at its end, where something is.
    """
    scored = [row for row in rows if row["status"] == OK]
    failed = [row for row in rows if row["status"] != OK]
    top_k = max((len(row["labels"]) for row in scored), default=0)
    labels, scores = _mean_scores(scored, top_k)
    cut_off = video.get("cut_off", "")
    return {
        **{name: video[name] for name in ("uri", "video_id", "content_version")},
        "duration_seconds": video.get("duration_seconds"),
        "frames": video.get("frames"),
        "windows": sum(row["window_index"] is not None for row in rows),
        "windows_failed": sum(row["window_index"] is not None for row in failed),
        "labels": labels,
        "scores": scores,
        "spans": merged_spans(scored),
        "status": FAILED if not scored else PARTIAL if failed or cut_off else OK,
        "error_class": failed[0]["status"] if failed else CUT_OFF if cut_off else None,
        "message": failed[0]["message"] if failed else cut_off,
        **common,
    }


def _mean_scores(scored: Sequence[Row], top_k: int) -> tuple[list[str], list[float]]:
    total: dict[str, float] = defaultdict(float)
    for row in scored:
        for label, score in zip(row["labels"], row["scores"], strict=True):
            total[label] += score / len(scored)
    best = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:top_k]
    return [label for label, _ in best], [score for _, score in best]


def merged_spans(scored: Sequence[Row]) -> list[dict[str, Any]]:
    """For every label the stretches of consecutive windows that have it, by start (`SPAN`).

    Args:
        scored: windows in order, with ``window_index``, times, ``labels`` and ``scores``.
    """
    spans: list[dict[str, Any]] = []
    last: dict[str, tuple[int, dict[str, Any]]] = {}  # label → its newest window, and the span that this belongs to
    for row in scored:
        for label, score in zip(row["labels"], row["scores"], strict=True):
            before, span = last.get(label, (None, {}))
            if before == row["window_index"] - 1:
                span |= {"end_seconds": row["end_seconds"], "score": max(span["score"], score)}
            else:
                span = {"label": label, "start_seconds": row["start_seconds"], "end_seconds": row["end_seconds"]}
                span["score"] = score
                spans.append(span)
            last[label] = row["window_index"], span
    return sorted(spans, key=lambda span: (span["start_seconds"], -span["score"]))
