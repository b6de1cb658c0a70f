"""What a tagging job writes and how a reader sees it: plans, immutable files, numbered commits.

``units/N.parquet`` is the plan of version N, ``tags/N-C.parquet`` the rows of its chunk C (a single PUT each),
``videos/N.parquet`` one row a video, derived from them, and ``_commits/N.json``, written last and only if absent,
names the files of the current view. A video that changed has rows of a later version, which supersede the earlier
ones; one that is gone has a tombstone (status ``deleted``). The view in one line of DuckDB, over the files of the
last commit: ``SELECT * FROM read_parquet([...]) QUALIFY version = max(version) OVER (PARTITION BY uri)
AND status <> 'deleted'``.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import (
    StorageError,
    exists,
    filesystem,
    join,
    list_files,
    read_bytes,
    write_bytes,
    write_if_absent,
)
from pipeline.windows import DELETED, OK, WindowGrid

PARTIAL = "partial"

TAG_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("video_id", pa.int64(), nullable=False),
        pa.field("unit_id", pa.int64(), nullable=False),
        pa.field("window_index", pa.int64()),
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("run_key", pa.string(), nullable=False),
    ]
)
"""One window: ``labels`` by falling ``scores`` (softmax). ``status`` is ``ok`` or one word for what went wrong; a video
that could not be opened at all is one row without window and times. ``run_key`` is a tag of the MLflow run."""

VIDEO_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("video_id", pa.int64(), nullable=False),
        pa.field("content_version", pa.string(), nullable=False),
        pa.field("duration_seconds", pa.float64()),
        pa.field("windows", pa.int64(), nullable=False),
        pa.field("windows_failed", pa.int64(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("weights_digest", pa.string(), nullable=False),
        pa.field("run_key", pa.string(), nullable=False),
    ]
)
"""One video: top labels by the mean of the windows' scores (a label outside a window's top k counts 0 there).
``status`` is ``ok``, ``partial`` (some windows failed) or what kept every window from being scored."""


def read_tags(output: str) -> pa.Table:
    """The current view of a tagging output: one row per window (`TAG_SCHEMA`), or per video that failed.

    Raises:
        StorageError: nothing was committed there.
    """
    return _current_view(output, "tags", TAG_SCHEMA)


def read_videos(output: str) -> pa.Table:
    """The current view of a tagging output: one row per video (`VIDEO_SCHEMA`)."""
    return _current_view(output, "videos", VIDEO_SCHEMA)


def last_commit(output: str) -> dict[str, Any] | None:
    """The newest commit, or None before the first."""
    version = _last_number(output, "_commits", ".json")
    if version is None:
        return None
    content: dict[str, Any] = json.loads(read_bytes(join(output, "_commits", f"{version}.json")))
    return content


def known_versions(output: str) -> dict[str, str]:
    """URI → content version of every video in the current view, failed ones included."""
    if last_commit(output) is None:
        return {}
    videos = read_videos(output)
    return dict(zip(videos["uri"].to_pylist(), videos["content_version"].to_pylist(), strict=True))


class PlannedVersion:
    """One version of an output, from its plan to its commit."""

    def __init__(self, output: str, version: int) -> None:
        """Open the plan of ``version``.

        Raises:
            StorageError: it cannot be read.
        """
        self.output, self.version = output, version
        self.units = pq.read_table(pa.BufferReader(read_bytes(_plan_uri(output, version))))
        self.settings: dict[str, Any] = json.loads(self.units.schema.metadata[b"settings"])
        boundaries = np.flatnonzero(np.diff(self.units["chunk"].to_numpy(), prepend=-1))
        self._offsets = [*boundaries.tolist(), len(self.units)]

    @property
    def attempts_folder(self) -> str:
        """Where the attempts at this version's units are counted (`pipeline.attempts`)."""
        return join(self.output, "_attempts", f"{self.version:06d}")

    @property
    def num_chunks(self) -> int:
        """Chunks of the plan, numbered from 0."""
        return len(self._offsets) - 1

    def chunk(self, number: int) -> pa.Table:
        """The units of one chunk."""
        start, end = self._offsets[number : number + 2]
        return self.units.slice(start, end - start)

    def count_windows(self, chunks: Sequence[int]) -> int:
        """Windows of some chunks."""
        return sum(sum(self.chunk(number)["num_windows"].to_pylist()) for number in chunks)

    def missing_chunks(self) -> list[int]:
        """Chunks whose file is not there yet, by listing."""
        done = set(_names(self.output, "tags", f"{self.version:06d}-"))
        return [number for number in range(self.num_chunks) if self._chunk_name(number) not in done]

    def write_chunk(self, number: int, rows: pa.Table) -> None:
        """Write the rows of one chunk as its file: the same name and rows whenever and wherever it is done."""
        write_bytes(join(self.output, "tags", self._chunk_name(number)), _parquet(rows.cast(TAG_SCHEMA)))

    def commit(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Derive ``videos/`` from the version's tags and name all files of the new view.

        Args:
            facts: what the commit should also tell (run id, source).

        Raises:
            StorageError: another program committed this version, or a chunk is missing.
        """
        missing = self.missing_chunks()
        if missing:
            raise StorageError(
                join(self.output, "tags"), f"chunk {missing[0]} of version {self.version} is missing", "run tag again"
            )
        tags = [f"tags/{self._chunk_name(number)}" for number in range(self.num_chunks)]
        videos = f"videos/{self.version:06d}.parquet"
        rows = video_rows(_read(self.output, tags, TAG_SCHEMA), self.units, str(self.settings["weights_digest"]))
        write_bytes(join(self.output, videos), _parquet(rows))
        previous = last_commit(self.output) or {"version": -1, "tags": [], "videos": []}
        commit = {
            "version": self.version,
            "parent": previous["version"],
            "plan": f"units/{self.version:06d}.parquet",
            "tags": previous["tags"] + tags,
            "videos": [*previous["videos"], videos],
            "settings": self.settings,
            **facts,
        }
        place = join(self.output, "_commits", f"{self.version}.json")
        if not write_if_absent(place, json.dumps(commit, indent=2).encode()):
            raise StorageError(place, "another program committed this version", "give each tagging job its own output")
        return commit

    def _chunk_name(self, number: int) -> str:
        return f"{self.version:06d}-{number:06d}.parquet"


def write_plan(output: str, version: int, units: pa.Table, settings: Mapping[str, Any]) -> None:
    """Keep the plan of a version before any of its work begins.

    Raises:
        StorageError: another program planned this version.
    """
    table = units.replace_schema_metadata({"settings": json.dumps(dict(settings), sort_keys=True)})
    if not write_if_absent(_plan_uri(output, version), _parquet(table)):
        raise StorageError(
            _plan_uri(output, version), "another program planned this version", "give each tagging job its own output"
        )


def unfinished_version(output: str) -> PlannedVersion | None:
    """The version that was planned but not committed, when an earlier run was cut off."""
    planned = _last_number(output, "units", ".parquet")
    committed = _last_number(output, "_commits", ".json")
    if planned is None or planned == committed:
        return None
    return PlannedVersion(output, planned)


def tag_rows(units: pa.Table, scored: Mapping[tuple[int, int], Mapping[str, Any]], grid: WindowGrid,
             version: int, run_key: str) -> pa.Table:  # fmt: skip
    """The rows of one chunk in the order of its plan.

    Args:
        units: the chunk's units.
        scored: (unit id, window index) → ``labels``, ``scores``, ``status``, ``message``.
    """
    rows = []
    for unit in units.to_pylist():
        basics = {name: unit[name] for name in ("uri", "video_id", "unit_id")} | {
            "version": version,
            "run_key": run_key,
        }
        if unit["num_windows"] == 0:
            failure = {"labels": [], "scores": [], "status": unit["status"], "message": unit["message"]}
            rows.append(basics | failure)
        for index in range(unit["first_window"], unit["first_window"] + unit["num_windows"]):
            start, end = grid.span(index, unit["duration_seconds"])
            times = {"window_index": index, "start_seconds": start, "end_seconds": end}
            rows.append(basics | times | dict(scored[unit["unit_id"], index]))
    return pa.Table.from_pylist(rows, schema=TAG_SCHEMA)


def video_rows(tags: pa.Table, units: pa.Table, weights_digest: str) -> pa.Table:
    """One row per video of a version, from all its tag rows (`VIDEO_SCHEMA`)."""
    facts = {unit["video_id"]: unit for unit in units.select(["video_id", *_VIDEO_FACTS]).to_pylist()}
    windows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in tags.to_pylist():
        windows[row["video_id"]].append(row)
    rows = [_video_row(facts[video], rows) | {"weights_digest": weights_digest} for video, rows in windows.items()]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["uri"])), schema=VIDEO_SCHEMA)


_VIDEO_FACTS = ("content_version", "duration_seconds")


def _video_row(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scored = [row for row in rows if row["status"] == OK]
    failed = [row for row in rows if row["status"] != OK]
    top_k = max((len(row["labels"]) for row in scored), default=0)
    labels, scores = _mean_scores(scored, top_k)
    status = OK if not failed else PARTIAL if scored else failed[0]["status"]
    return {
        **{name: rows[0][name] for name in ("uri", "video_id", "version", "run_key")},
        **{name: facts[name] for name in _VIDEO_FACTS},
        "windows": sum(row["window_index"] is not None for row in rows),
        "windows_failed": sum(row["window_index"] is not None for row in failed),
        "labels": labels,
        "scores": scores,
        "status": status,
        "message": failed[0]["message"] if failed else "",
    }


def _mean_scores(scored: Sequence[Mapping[str, Any]], top_k: int) -> tuple[list[str], list[float]]:
    total: dict[str, float] = defaultdict(float)
    for row in scored:
        for label, score in zip(row["labels"], row["scores"], strict=True):
            total[label] += score / len(scored)
    best = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:top_k]
    return [label for label, _ in best], [score for _, score in best]


def _current_view(output: str, kind: str, schema: pa.Schema) -> pa.Table:
    commit = last_commit(output)
    if commit is None:
        raise StorageError(output, "no committed tags", "run `python -m jobs.tag` with this output first")
    table = _read(output, commit[kind], schema)
    if len(table) == 0:
        return table
    uris = table["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    version = table["version"].to_numpy()
    newest = np.full(uris.max() + 1, -1, np.int64)
    np.maximum.at(newest, uris, version)
    alive = pc.not_equal(table["status"], DELETED).to_numpy()
    return table.filter(pa.array((version == newest[uris]) & alive))


def _read(output: str, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    if not names:
        return schema.empty_table()
    files, root = filesystem(output)
    return pq.read_table([f"{root.rstrip('/')}/{name}" for name in names], filesystem=files, schema=schema)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _plan_uri(output: str, version: int) -> str:
    return join(output, "units", f"{version:06d}.parquet")


def _last_number(output: str, folder: str, suffix: str) -> int | None:
    numbers = [int(name.removesuffix(suffix)) for name in _names(output, folder, "") if name.endswith(suffix)]
    return max(numbers, default=None)


def _names(output: str, folder: str, prefix: str) -> list[str]:
    place = join(output, folder)
    if not exists(place):
        return []
    names = (uri.rsplit("/", 1)[-1] for uri in list_files(place, recursive=False)["uri"].to_pylist())
    return [name for name in names if name.startswith(prefix)]
