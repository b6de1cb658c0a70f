"""From scores to rows: the windows of a chunk, and of each video its labels, time spans and first error."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.schema import DELETED, FAILED, OK, PARTIAL
from pipeline.tagging.schema import EMBEDDING, tag_schema
from pipeline.tagging.windows import WindowGrid

Row = Mapping[str, Any]


def tag_rows(units: pa.Table, scored: Mapping[tuple[int, int], Row], grid: WindowGrid,
             version: int, run_key: str, embedding_size: int = 0) -> pa.Table:  # fmt: skip
    """The rows of one chunk in the order of its plan.

    Args:
        units: the chunk's units.
        scored: (unit id, window index) → ``labels``, ``scores``, ``status``, ``message``, ``attempts``.
    """
    rows = []
    for unit in units.to_pylist():
        basics = {name: unit[name] for name in ("uri", "video_id", "unit_id")} | {
            "version": version,
            "run_key": run_key,
            EMBEDDING: [0.0] * embedding_size,
        }
        if unit["num_windows"] == 0:
            failure = {"labels": [], "scores": [], "status": unit["status"], "message": unit["message"], "attempts": 1}
            rows.append(basics | failure)
        for index in range(unit["first_window"], unit["first_window"] + unit["num_windows"]):
            start, end = grid.span(index, unit["duration_seconds"])
            times = {"window_index": index, "start_seconds": start, "end_seconds": end}
            rows.append(basics | times | dict(scored[unit["unit_id"], index]))
    return pa.Table.from_pylist(rows, schema=tag_schema(embedding_size))


def video_rows(tags: Iterable[pa.Table], units: pa.Table, facts: Row) -> Iterator[dict[str, Any]]:
    """Rows of `VIDEO_SCHEMA`, one for every video whose windows are complete.

    Args:
        tags: rows of whole chunks, in the order of the plan; a video's rows follow each other there.
        units: the plan.
        facts: further columns, the same in every row.
    """
    plan: dict[int, dict[str, Any]] = {}
    for unit in units.select(["video_id", "num_windows", *_VIDEO_FACTS]).to_pylist():
        known = plan.setdefault(unit["video_id"], unit | {"num_windows": 0})
        known["num_windows"] += unit["num_windows"]
    rows = (row for table in tags for row in table.to_pylist())
    for video, group in itertools.groupby(rows, key=lambda row: int(row["video_id"])):
        windows = list(group)
        if len(windows) == max(1, plan[video]["num_windows"]):
            yield _video_row(plan[video], windows) | dict(facts)


_VIDEO_FACTS = ("content_version", "duration_seconds")


def _video_row(facts: Row, rows: Sequence[Row]) -> dict[str, Any]:
    scored = [row for row in rows if row["status"] == OK]
    failed = [row for row in rows if row["status"] != OK]
    top_k = max((len(row["labels"]) for row in scored), default=0)
    labels, scores = _mean_scores(scored, top_k)
    return {
        **{name: rows[0][name] for name in ("uri", "video_id", "version", "run_key")},
        **{name: facts[name] for name in _VIDEO_FACTS},
        "windows": sum(row["window_index"] is not None for row in rows),
        "windows_failed": sum(row["window_index"] is not None for row in failed),
        "labels": labels,
        "scores": scores,
        "spans": merged_spans(scored),
        "status": _status(scored, failed),
        "error_class": failed[0]["status"] if failed else None,
        "message": failed[0]["message"] if failed else "",
        "attempts": max(row["attempts"] for row in rows),
    }


def _status(scored: Sequence[Row], failed: Sequence[Row]) -> str:
    if not failed:
        return OK
    if scored:
        return PARTIAL
    return DELETED if failed[0]["status"] == DELETED else FAILED


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
