"""The versions of a prepared set: their records, what they hold, and how the newest becomes the one that is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import name_digests
from pipeline.prepare.chunk import VIDEO_SCHEMA
from pipeline.schema import REJECTED_SCHEMA
from pipeline.storage.files import file_names, join, read_json, write_unless
from pipeline.storage.parquet import read_table, write_table
from pipeline.storage.retry import in_threads

READERS = 16
"""Small objects that are read side by side: each costs a round trip on object storage."""


def read_versions(output: str) -> list[dict[str, Any]]:
    """Every committed version of a prepared set, oldest first."""
    folder = join(output, "versions")
    return in_threads(READERS, lambda name: read_json(join(folder, name)), file_names(folder, ".json"))


def current_videos(output: str, version: int) -> pa.Table:
    """The record of every video that a version was made of (`VIDEO_SCHEMA`), rejected ones included.

    Of a video that changed between versions the newest record counts.
    """
    tables = [VIDEO_SCHEMA.empty_table()]
    for number in range(version, 0, -1):
        tables += version_videos(output, number)
    videos = pa.concat_tables(tables, promote_options="default")  # records of older versions have fewer columns
    _, newest = np.unique(name_digests(videos["uri"]), return_index=True)
    return videos.take(pa.array(np.sort(newest)))


def times_rejected(output: str, version: int, reasons: Sequence[str]) -> Counter[tuple[str, str | None]]:
    """How many versions up to this one rejected a video for one of the reasons, by URI and content version."""
    tables = [table for number in range(1, version + 1) for table in version_videos(output, number)]
    return Counter(content for table in tables for content in contents_with_status(table, reasons))


def contents_with_status(videos: pa.Table, statuses: Sequence[str]) -> list[tuple[str, str | None]]:
    """URI and content version of the videos (`VIDEO_SCHEMA`) that have one of the statuses."""
    found = videos.filter(pc.is_in(videos["status"], pa.array(statuses)))
    return list(zip(found["uri"].to_pylist(), found["content_version"].to_pylist(), strict=True))


def rejections(output: str, version: int, split: str) -> tuple[dict[str, int], dict[str, int]]:
    """Videos of a split that no clip was stored of, and those rejected before they had a split, both by reason.

    What a person took out by `exclude` is in neither. `StorageError` where prepare's records are not beside the set.
    """
    record = read_json(join(output, "versions", f"{version:04d}.json"))
    videos = current_videos(output, version)
    videos = videos.filter(pc.invert(pc.is_in(videos["uri"], pa.array(record["excluded"], pa.string()))))
    of_split = videos.filter(pc.and_(pc.equal(videos["split"], split), pc.equal(videos["clips"], 0)))
    elsewhere = {*videos["uri"].to_pylist(), *record["excluded"]}
    rejected = read_rejected(output, record["rejected"]).to_pylist()
    unread = Counter(row["reason"] for row in rejected if row["uri"] not in elsewhere)
    return dict(Counter(of_split["status"].to_pylist()).most_common()), dict(unread.most_common())


def read_rejected(output: str, files: Sequence[str]) -> pa.Table:
    """The rejected rows (`REJECTED_SCHEMA`) of some files, such as those that a version names."""
    tables = in_threads(READERS, lambda file: read_table(join(output, file)), files)
    return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *tables])


def publish(output: str, version: Mapping[str, Any]) -> None:
    """Let ``dataset.json`` and ``classes.json`` name a committed version; safe to repeat.

    Both only advance: a writer that was overtaken keeps what the faster one wrote.
    """
    # Classes first: a reader of the new record must never find a class list that is too short.
    _advance(join(output, "classes.json"), version["classes"], lambda there: len(there) >= len(version["classes"]))
    _advance(join(output, "dataset.json"), version, lambda there: there["version"] >= version["version"])


def _advance(place: str, content: Any, is_there: Callable[[Any], bool]) -> None:
    """Write JSON by conditional writes until it, or something newer, is stored."""
    write_unless(place, json.dumps(content, indent=1).encode(), lambda found: is_there(json.loads(found)))


def shards_of(output: str, version: int) -> list[dict[str, Any]]:
    """The shards that the records of a version name, in the order of the plan."""
    shards = [json.loads(record.schema.metadata[b"shards"]) for record in version_videos(output, version)]
    return [shard for of_chunk in shards for shard in of_chunk]


def version_videos(output: str, version: int) -> list[pa.Table]:
    """The records of a version's own chunks, in the order of the plan."""
    files = recorded_chunks(output, version)
    return in_threads(READERS, read_table, [files[chunk] for chunk in sorted(files)])


def recorded_chunks(output: str, version: int) -> dict[int, str]:
    """Chunk number → its record."""
    folder = join(output, "_prepare", f"v{version:04d}", "videos")
    return {int(name.removesuffix(".parquet")): join(folder, name) for name in file_names(folder, ".parquet")}


def rejected_files(output: str, version: int) -> list[str]:
    """The rejected rows that the chunks of a version wrote."""
    names = file_names(join(output, "rejected"), ".parquet")
    return [f"rejected/{name}" for name in names if re.fullmatch(rf"v{version:04d}-\d+\.parquet", name)]


def kept_rejected(output: str, plan: Mapping[str, Any], earlier: Sequence[str]) -> list[str]:
    """What the parent version rejected, except by its own plan and for videos that this version looked at.

    Files with some of these rows are rewritten without them.
    """
    version, kept = plan["version"], []
    looked_at = [chunk for record in version_videos(output, version) for chunk in record["uri"].chunks]
    gone = pa.concat_arrays([pa.array(plan["excluded"], pa.string()), *looked_at])
    for number, file in enumerate(file for file in earlier if not file.endswith("-plan.parquet")):
        rows = read_table(join(output, file))
        stays = pc.invert(pc.is_in(rows["uri"], gone))
        if pc.all(stays).as_py():
            kept.append(file)
        elif pc.any(stays).as_py():
            kept.append(f"rejected/v{version:04d}-kept-{number:06d}.parquet")
            write_table(join(output, kept[-1]), rows.filter(stays))
    return kept


def version_counts(
    videos: pa.Table, rejected: pa.Table, shards: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> dict[str, Any]:
    stored = videos.filter(pc.greater(videos["clips"], 0))
    by_split = stored.group_by("split").aggregate([("clips", "sum")])
    labelled = stored.filter(pc.is_valid(stored["label"]))
    trained = set(pc.unique(labelled["label"].filter(pc.equal(labelled["split"], "train"))).to_pylist())
    return {
        "videos": len(stored),
        "clips": sum(shard["rows"] for shard in shards),
        "labelled_clips": pc.sum(labelled["clips"]).as_py() or 0,
        "clips_by_split": dict(zip(by_split["split"].to_pylist(), by_split["clips_sum"].to_pylist(), strict=True)),
        "classes_without_training_clips": [name for name in classes if name not in trained],
        "seconds": pc.sum(stored["duration_seconds"]).as_py() or 0.0,
        "source_bytes": pc.sum(stored["bytes"]).as_py() or 0,
        "stored_bytes": sum(shard["bytes"] for shard in shards),
        "rejected": dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
    }


def version_digest(shards: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Of the shards' content in order and of the class list: what training pins."""
    content = json.dumps([[shard["sha256"] for shard in shards], list(classes)])
    return hashlib.sha256(content.encode()).hexdigest()
