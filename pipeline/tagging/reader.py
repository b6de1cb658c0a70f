"""The current snapshot of a tagging output: the rows of the newest commit, of every video the newest ones.

The same in DuckDB, over the files that the newest of ``_commits/`` names: ``SELECT tags.* FROM read_parquet([its
tags]) tags JOIN (FROM read_parquet([its videos]) QUALIFY version = max(version) OVER (PARTITION BY uri)) videos
USING (video_id, version) WHERE videos.status <> 'deleted'``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.schema import DELETED, clip_id
from pipeline.storage.files import StorageError, file_names, join, read_json
from pipeline.storage.parquet import read_by_arrow
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema

# May succeed in the next run; every other failure stays until the object changes.
RETRIED = ("unreadable", "forbidden")

Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]


def read_tags(output: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The current snapshot, some columns or all: one row per window (`tag_schema`), or per video that failed.

    `StorageError` where the output has no commit, as in `read_videos`.
    """
    commit = _commit_to_read(output)
    schema = tag_schema(commit["settings"].get("embedding_size", 0))
    tags = read_files(output, commit["tags"], schema, _with(columns, "video_id", "version"))
    videos = read_videos(output, ["video_id", "version"]).combine_chunks()
    its_version = pc.take(videos["version"], pc.index_in(tags["video_id"], videos["video_id"].combine_chunks()))
    return tags.filter(pc.equal(tags["version"], its_version)).select(columns or schema.names)


def read_videos(output: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The current snapshot, some columns or all: one row per video (`VIDEO_SCHEMA`)."""
    files = _commit_to_read(output)["videos"]
    table = read_files(output, files, VIDEO_SCHEMA, _with(columns, "uri", "version", "status"))
    uris = table["uri"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    alive = pc.not_equal(table["status"], DELETED).to_numpy()
    newest = _newest(uris.astype(np.int64), table["version"].to_numpy())
    return table.filter(pa.array(newest & alive)).select(columns or VIDEO_SCHEMA.names)


def _with(columns: Sequence[str] | None, *needed: str) -> list[str] | None:
    return None if columns is None else list(dict.fromkeys([*columns, *needed]))


def last_commit(output: str) -> dict[str, Any] | None:
    """The newest commit, or None before the first."""
    version = last_number(output, "_commits", ".json")
    return None if version is None else read_json(join(output, "_commits", f"{version}.json"))


class KnownVideos:
    """The videos of the current snapshot as numbers, a few bytes each: a source of millions is compared with them."""

    def __init__(self, output: str) -> None:
        self.output = output
        commit = last_commit(output)
        self.files: list[str] = commit["videos"] if commit else []
        keys, ids, versions, settled = self._numbers()
        newest = _newest(np.unique(keys, return_inverse=True)[1], versions)
        self.uri_keys: Ids = np.sort(keys[newest & (ids >= 0)])
        """`uri_key` of every video, failed ones included."""
        self.settled_ids: Ids = np.sort(ids[newest & settled & (ids >= 0)])
        """`video_id` of those that need no retry."""

    def rows(self, uri_keys: Ids) -> pa.Table:
        """``uri, content_version`` of some videos."""
        columns = ["uri", "content_version"]
        found = [
            table.filter(pa.array(np.isin(uri_keys_of(table["uri"]), uri_keys))) for table in self._tables(columns)
        ]
        # The newest of a video comes last.
        newest = pa.concat_tables(found).group_by("uri", use_threads=False).aggregate([("content_version", "last")])
        return newest.rename_columns(columns)

    def _numbers(self) -> tuple[Ids, Ids, Ids, Mask]:
        """Of every row: the URI's key, the video's id (negative: deleted), the version, whether it is settled."""
        parts = []
        for table in self._tables(["uri", "video_id", "version", "status", "error_class"]):
            deleted = pc.equal(table["status"], DELETED).to_numpy()
            retried = pc.is_in(table["error_class"], value_set=pa.array(RETRIED)).to_numpy()
            ids = np.where(deleted, -1, table["video_id"].to_numpy())
            parts.append((uri_keys_of(table["uri"]), ids, table["version"].to_numpy(), ~retried))
        keys, all_ids, versions, settled = (np.concatenate(column) for column in zip(*parts, strict=True))
        return keys, all_ids, versions, settled

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        yield VIDEO_SCHEMA.empty_table().select(columns)
        for name in self.files:
            yield read_files(self.output, [name], VIDEO_SCHEMA, columns)


def uri_keys_of(uris: pa.ChunkedArray) -> Ids:
    """A number for every URI."""
    return np.fromiter((clip_id(uri, "", 0.0, 0.0) for uri in uris.to_pylist()), np.int64, len(uris))


def read_files(output: str, names: Sequence[str], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Some files of an output as one table."""
    if not names:
        return schema.empty_table().select(columns or schema.names)

    def read(files: pyarrow.fs.FileSystem, root: str) -> pa.Table:
        paths = [f"{root.rstrip('/')}/{name}" for name in names]
        return pq.read_table(paths, filesystem=files, schema=schema, columns=columns)

    return read_by_arrow(output, read)


def last_number(output: str, folder: str, suffix: str) -> int | None:
    """The highest of the numbers that name files of a folder."""
    names = file_names(join(output, folder), suffix)
    return max((int(name.removesuffix(suffix)) for name in names), default=None)


def _commit_to_read(output: str) -> dict[str, Any]:
    commit = last_commit(output)
    if commit is None:
        raise StorageError(output, "no committed tags", "run `python -m jobs.tag` with this output first")
    return commit


def _newest(groups: Ids, versions: Ids) -> Mask:
    """Which rows have the highest version of their group (numbered from 0)."""
    highest = np.full(groups.max(initial=-1) + 1, -1, np.int64)
    np.maximum.at(highest, groups, versions)
    newest: Mask = versions == highest[groups]
    return newest
