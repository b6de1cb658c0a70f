"""Outputs of releases before the tables: their newest snapshot, to be committed to the tables of the same output.

_commits/N.json    names the files of snapshot N: rows by version, of every video the newest count
units/, _begun/, generations/    plans, attempts and the lock
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.delta import Change, write_data_file
from pipeline.storage.files import delete, exists, file_names, join, list_files, read_json
from pipeline.storage.parquet import conformed, read_columns
from pipeline.storage.records import as_record, paths_within
from pipeline.storage.retry import in_threads
from pipeline.tagging.reader import READERS
from pipeline.tagging.schema import EMBEDDING, TAGS, VIDEO_SCHEMA, VIDEOS, tag_schema
from pipeline.tagging.tables import Changes

FILES_AT_ONCE = 256
FOLDERS = ("_begun", "generations", "units", "_commits")
"""The last one makes an output one of the old layout."""
DELETED = "deleted"
OF_THE_VIDEO = ("content_version", "run_id", "weights_digest")
"""Columns that rows of windows did not have."""
VERSION = pa.field("version", pa.int64(), nullable=False)


def holds_old_layout(output: str) -> bool:
    """Whether an output was written by a release that had plans and commits of its own instead of tables."""
    return bool(file_names(join(output, "_commits")) or file_names(join(output, "units")))


def old_settings(output: str) -> dict[str, Any] | None:
    """What all rows of the old snapshot have in common; None where nothing was ever committed."""
    commit = _newest(output)
    return None if commit is None else dict(commit["settings"])


def converted(output: str) -> Changes:
    """The rows of the old snapshot as files of the tables, to be committed."""
    commit = _newest(output)
    if commit is None:
        return Changes(Change(), Change())
    videos = _videos(output, commit)
    facts = {"weights_digest": commit["settings"]["weights_digest"]}
    schema = tag_schema(bool(commit["settings"].get("embedding_size")))
    tags = [write_data_file(join(output, TAGS), rows) for rows in _tags(output, commit, videos, facts, schema)]
    of_videos = _with_schema(videos, {}, VIDEO_SCHEMA)
    return Changes(
        Change(tuple(tags)), Change((write_data_file(join(output, VIDEOS), of_videos),) if len(of_videos) else ())
    )


def remove_old_layout(output: str) -> None:
    """Delete the plans and commits; rows in the old files are removed by a vacuum of the tables."""
    for folder in FOLDERS:
        if exists(join(output, folder)):
            for uri in list_files(join(output, folder))["uri"].to_pylist():
                delete(uri)


def _newest(output: str) -> dict[str, Any] | None:
    """The newest commit; files of other names are no commits.

    Raises:
        DamagedError: it is something else, or names files outside of the output.
    """
    folder = join(output, "_commits")
    names = [name for name in file_names(folder, ".json") if re.fullmatch(r"[0-9]{1,18}\.json", name)]
    if not names:
        return None
    path = join(folder, max(names, key=lambda name: int(name.removesuffix(".json"))))
    commit = read_json(path, {"settings": dict, "videos": list, "tags": list})
    as_record(path, json.dumps(commit["settings"]), {"weights_digest": str})
    paths_within(path, [*commit["videos"], *commit["tags"]])
    return commit


def _videos(output: str, commit: Mapping[str, Any]) -> pa.Table:
    """Of every video its newest row, without those that were deleted."""
    rows = _read(output, commit["videos"], VIDEO_SCHEMA)
    uris = rows["uri"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    versions = rows["version"].to_numpy()
    highest = np.full(uris.max(initial=-1) + 1, -1, np.int64)
    np.maximum.at(highest, uris, versions)
    newest = pa.array(versions == highest[uris])
    return rows.filter(pc.and_(newest, pc.not_equal(rows["status"], DELETED)))


def _tags(
    output: str, commit: Mapping[str, Any], videos: pa.Table, facts: Mapping[str, Any], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows that belong to these videos, some files at a time."""
    ids = videos["video_id"].combine_chunks()
    names = commit["tags"]
    for start in range(0, len(names), FILES_AT_ONCE):
        own = pa.schema([field for field in schema if field.name not in OF_THE_VIDEO])
        rows = _read(output, names[start : start + FILES_AT_ONCE], own)
        of_video = pc.index_in(rows["video_id"], ids)
        rows = rows.filter(pc.equal(rows["version"], pc.take(videos["version"], of_video)))
        of_video = pc.index_in(rows["video_id"], ids)
        more = {name: pc.take(videos[name], of_video) for name in ("content_version", "run_id")}
        if len(rows):
            yield _with_schema(rows, {**more, **facts}, schema)


def _with_schema(rows: pa.Table, more: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Rows with further columns, in the types of a schema."""
    columns = {name: rows[name] for name in rows.column_names}
    for name, value in more.items():
        columns[name] = pa.array([value] * len(rows)) if isinstance(value, str) else value
    if EMBEDDING.name in schema.names:  # failed windows had zeros
        failed = pc.not_equal(rows["status"], "ok")
        listed = columns[EMBEDDING.name].cast(EMBEDDING.type)
        columns[EMBEDDING.name] = pc.if_else(failed, pa.scalar(None, EMBEDDING.type), listed)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _read(output: str, names: list[str], schema: pa.Schema) -> pa.Table:
    """The rows of some files, with the version of the snapshot that each belongs to."""
    schema = schema.append(VERSION)
    required = [field.name for field in schema if not field.nullable]

    def read(name: str) -> pa.Table:
        uri = join(output, name)
        return conformed(read_columns(uri, schema.names), schema, uri, required).replace_schema_metadata()

    return pa.concat_tables([schema.empty_table(), *in_threads(READERS, read, names)])
