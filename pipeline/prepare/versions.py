"""The versions of a prepared set: their records, what they hold, and how the newest becomes the one that is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import name_digests
from pipeline.media import Media
from pipeline.prepare.chunk import VIDEO_SCHEMA
from pipeline.schema import REJECTED_SCHEMA
from pipeline.shards.index import ShardClips
from pipeline.storage.files import file_names, join, read_json, write_unless
from pipeline.storage.parquet import conformed, read_conformed, read_table, write_table
from pipeline.storage.records import (
    DAMAGED_REMEDY,
    DamagedError,
    Types,
    as_list,
    as_record,
    parse_json,
    paths_within,
    texts_of,
)
from pipeline.storage.retry import in_threads

NUMBERED: Mapping[str, Types] = {"version": int}
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
    videos = pa.concat_tables(tables).replace_schema_metadata()
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
    path = join(output, "versions", f"{version:04d}.json")
    record = read_json(path)
    excluded = texts_of(path, record, "excluded")
    videos = current_videos(output, version)
    videos = videos.filter(pc.invert(pc.is_in(videos["uri"], pa.array(excluded, pa.string()))))
    of_split = videos.filter(pc.and_(pc.equal(videos["split"], split), pc.equal(videos["clips"], 0)))
    elsewhere = {*videos["uri"].to_pylist(), *excluded}
    rejected = read_rejected(output, texts_of(path, record, "rejected")).to_pylist()
    unread = Counter(row["reason"] for row in rejected if row["uri"] not in elsewhere)
    return dict(Counter(of_split["status"].to_pylist()).most_common()), dict(unread.most_common())


def read_rejected(output: str, files: Sequence[str]) -> pa.Table:
    """The rejected rows (`REJECTED_SCHEMA`) of some files, such as those that a version names."""
    paths_within(output, files)
    tables = in_threads(READERS, lambda file: read_conformed(join(output, file), REJECTED_SCHEMA), files)
    return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *tables])


def publish(output: str, version: Mapping[str, Any]) -> None:
    """Let ``dataset.json`` and ``classes.json`` name a committed version; safe to repeat.

    Both only advance: a writer that was overtaken keeps what the faster one wrote.
    """
    # Classes first: a reader of the new record must never find a class list that is too short.
    classes, record = (join(output, name) for name in ("classes.json", "dataset.json"))
    _advance(classes, version["classes"], lambda stored: len(_class_list(classes, stored)) >= len(version["classes"]))
    _advance(record, version, lambda stored: as_record(record, stored, NUMBERED)["version"] >= version["version"])


def _advance(path: str, content: Any, is_as_new: Callable[[bytes], bool]) -> None:
    """Write JSON by conditional writes until it, or something newer, is stored."""
    write_unless(path, json.dumps(content, indent=1).encode(), is_as_new)


def _class_list(path: str, content: bytes) -> list[Any]:
    try:
        found = parse_json(content)
    except ValueError as error:
        raise DamagedError(path, f"is damaged: no JSON ({error})", DAMAGED_REMEDY) from error
    if not isinstance(found, list):
        raise DamagedError(path, "is damaged: must hold a list of classes", DAMAGED_REMEDY)
    return found


def shards_of(output: str, version: int) -> list[dict[str, Any]]:
    """The shards that the records of a version name, in the order of the plan."""
    return [shard for uri, record in _records(output, version) for shard in _shards_in(uri, record)]


def _shards_in(uri: str, record: pa.Table) -> list[dict[str, Any]]:
    """The shards that a chunk's record says were written."""
    metadata = record.schema.metadata or {}
    shards = as_list(uri, metadata.get(b"shards", b""), {"file": str, "rows": int, "bytes": int, "row_groups": list})
    paths_within(uri, (shard["file"] for shard in shards))
    return shards


def clips_of_shards(output: str, version: int) -> dict[str, ShardClips]:
    """Labels and splits of the clips of shards, by file, as far as the chunks of versions up to this one hold them."""
    clips: dict[str, ShardClips] = {}
    for number in range(1, version + 1):
        for uri, record in _records(output, number):
            files = [shard["file"] for shard in _shards_in(uri, record)]
            recorded = as_list(uri, (record.schema.metadata or {}).get(b"clips", b"[]"), {})  # earlier releases did not
            clips |= {file: ShardClips.from_json(of_file, uri) for file, of_file in zip(files, recorded, strict=False)}
    return clips


def version_videos(output: str, version: int) -> list[pa.Table]:
    """The videos of a version's own chunks (`VIDEO_SCHEMA`), in the order of the plan."""
    return [record for _, record in _records(output, version)]


def _records(output: str, version: int) -> list[tuple[str, pa.Table]]:
    """The records of a version's own chunks with their URIs: videos, and as metadata the shards and their clips."""
    files = recorded_chunks(output, version)
    uris = [files[chunk] for chunk in sorted(files)]
    return list(zip(uris, in_threads(READERS, _record, uris), strict=True))


def _record(uri: str) -> pa.Table:
    """Records of older versions have fewer columns: those are null."""
    return conformed(read_table(uri), VIDEO_SCHEMA, uri, ("uri", "status", "clips"))


def recorded_chunks(output: str, version: int) -> dict[int, str]:
    """Chunk number → its record; files of other names are not prepare's."""
    folder = join(output, "_prepare", f"v{version:04d}", "videos")
    names = [name for name in file_names(folder, ".parquet") if re.fullmatch(r"[0-9]{6,18}\.parquet", name)]
    return {int(name.removesuffix(".parquet")): join(folder, name) for name in names}


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
    left_out = pa.concat_arrays([pa.array(plan["excluded"], pa.string()), *looked_at])
    for number, file in enumerate(file for file in earlier if not file.endswith("-plan.parquet")):
        uri = join(output, *paths_within(output, [file]))
        rows = conformed(read_table(uri), REJECTED_SCHEMA, uri)
        stays = pc.invert(pc.is_in(rows["uri"], left_out))
        if pc.all(stays).as_py():
            kept.append(file)
        elif pc.any(stays).as_py():
            kept.append(f"rejected/v{version:04d}-kept-{number:06d}.parquet")
            write_table(join(output, kept[-1]), rows.filter(stays))
    return kept


def version_counts(
    videos: pa.Table,
    rejected: pa.Table,
    shards: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    media: Media = "video",
) -> dict[str, Any]:
    stored = videos.filter(pc.greater(videos["clips"], 0))
    by_split = stored.group_by("split").aggregate([("clips", "sum")])
    labelled = stored.filter(pc.is_valid(stored["label"]))
    trained = set(pc.unique(labelled["label"].filter(pc.equal(labelled["split"], "train"))).to_pylist())
    animations = {"animations": len(stored.filter(pc.greater(stored["num_frames"], 1)))} if media == "image" else {}
    return {
        **animations,
        "videos": len(stored),
        "clips": sum(shard["rows"] for shard in shards),
        "labelled_clips": pc.sum(labelled["clips"]).as_py() or 0,
        "clips_by_split": dict(zip(by_split["split"].to_pylist(), by_split["clips_sum"].to_pylist(), strict=True)),
        "classes_without_training_clips": [name for name in classes if name not in trained],
        "seconds": pc.sum(stored["duration_seconds"]).as_py() or 0.0,
        "trimmed_frames": pc.sum(stored["trimmed_frames"]).as_py() or 0,
        "damaged_frames": pc.sum(stored["damaged_frames"]).as_py() or 0,
        "source_bytes": pc.sum(stored["bytes"]).as_py() or 0,
        "stored_bytes": sum(shard["bytes"] for shard in shards),
        "rejected": dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
    }
