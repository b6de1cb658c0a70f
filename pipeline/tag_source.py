"""What there is to tag: a folder, a prefix or a manifest, against what an output already holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.annotations import VIDEO_SUFFIXES
from pipeline.storage import StorageError, absolute, filesystem, join, list_files, read_bytes
from pipeline.windows import DELETED, OK, PROBED_SCHEMA, video_id

MANIFEST_SUFFIXES = (".csv", ".parquet")
MANIFEST_COLUMNS = ("uri", "path", "video")


@dataclass(frozen=True)
class SourceListing:
    """The objects of a source."""

    content_versions: Mapping[str, str]
    """URI → what tells one content from the next: the ETag, else size and time of the last change."""
    skipped: Mapping[str, int]
    """Files that are no videos by their name: suffix → count."""


def list_source(source: str) -> SourceListing:
    """List a folder or prefix, or read a manifest (CSV or Parquet with a column ``uri`` or ``path``).

    In a manifest, relative paths start at the manifest's folder, and every row counts, whatever its suffix.

    Raises:
        StorageError: the source is missing or unreadable, or the manifest has no such column.
    """
    if source.lower().endswith(MANIFEST_SUFFIXES):
        return SourceListing(_manifest_versions(absolute(source)), {})
    rows = list_files(absolute(source)).to_pylist()
    videos = {row["uri"]: _content_version(row) for row in rows if row["uri"].lower().endswith(VIDEO_SUFFIXES)}
    skipped = Counter(_suffix(row["uri"]) for row in rows if row["uri"] not in videos)
    return SourceListing(videos, dict(sorted(skipped.items())))


def new_or_changed(listing: SourceListing, known: Mapping[str, str]) -> pa.Table:
    """Videos to probe, by URI: those that the output does not hold in this content version (`PROBED_SCHEMA`)."""
    fresh = [
        _video(uri, version, OK, "")
        for uri, version in sorted(listing.content_versions.items())
        if known.get(uri) != version
    ]
    return pa.Table.from_pylist(fresh, schema=PROBED_SCHEMA)


def tombstones(listing: SourceListing, known: Mapping[str, str]) -> pa.Table:
    """A row of status ``deleted`` for every video that the output holds and the source no longer does."""
    gone = sorted(known.keys() - listing.content_versions.keys())
    rows = [_video(uri, known[uri], DELETED, "no longer in the source") for uri in gone]
    return pa.Table.from_pylist(rows, schema=PROBED_SCHEMA)


def _video(uri: str, version: str, status: str, message: str) -> dict[str, object]:
    identity = {"video_id": video_id(uri, version), "uri": uri, "content_version": version}
    return identity | {"status": status, "message": message}


def _content_version(row: Mapping[str, object]) -> str:
    return str(row["etag"] or f"{row['size']}-{row['modified_ns']}")


def _manifest_versions(manifest: str) -> dict[str, str]:
    uris = [_resolve(path, manifest) for path in _manifest_paths(manifest)]
    listed: dict[str, str] = {}
    # One listing per folder instead of one request per row.
    for folder in sorted({uri.rsplit("/", 1)[0] for uri in uris}):
        listed |= _folder_versions(folder)
    return {uri: listed.get(uri, "missing") for uri in uris}


def _manifest_paths(manifest: str) -> Sequence[str]:
    try:
        table = _read_manifest(manifest)
    except pa.ArrowException as error:
        raise StorageError(manifest, f"cannot be read as a manifest ({str(error)[:200]})", "check the file") from error
    column = next((name for name in MANIFEST_COLUMNS if name in table.column_names), None)
    if column is None:
        raise StorageError(
            manifest, f"has no column {' or '.join(MANIFEST_COLUMNS)} among {table.column_names[:12]}", "rename one"
        )
    return [str(path) for path in table[column].drop_null().to_pylist()]


def _read_manifest(manifest: str) -> pa.Table:
    if manifest.lower().endswith(".csv"):
        return pyarrow.csv.read_csv(pa.BufferReader(read_bytes(manifest)))
    files, path = filesystem(manifest)
    return pq.read_table(path, filesystem=files)


def _resolve(path: str, manifest: str) -> str:
    if "://" in path or os.path.isabs(path):
        return path
    return join(manifest.rsplit("/", 1)[0], path)


def _folder_versions(folder: str) -> dict[str, str]:
    try:
        rows = list_files(folder, recursive=False).to_pylist()
    except StorageError as error:
        if error.missing:
            return {}
        raise
    return {row["uri"]: _content_version(row) for row in rows}


def _suffix(uri: str) -> str:
    return os.path.splitext(uri)[1].lower() or "(none)"
