"""What there is to tag: a folder, a prefix, a manifest or an inventory, against what an output already holds.

Collections of millions are read in parts and kept on disk, mapped into memory; comparing takes a few bytes a video.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.text_columns import ManifestError
from pipeline.schema import DELETED, OK, VIDEO_SUFFIXES
from pipeline.storage.files import (
    LISTING_SCHEMA,
    StorageError,
    absolute,
    join,
    list_files,
    listed_in_parts,
    read_bytes,
)
from pipeline.storage.parquet import read_columns
from pipeline.tagging.reader import KnownVideos, uri_keys_of
from pipeline.tagging.windows import PROBED_SCHEMA, video_id

MANIFEST_SUFFIXES = (".csv", ".parquet")
INVENTORY_SUFFIX = ".json"
MANIFEST_COLUMNS = ("uri", "path", "video")
ROWS_AT_ONCE = 100_000
LISTED_SCHEMA = pa.schema([("uri", pa.string()), ("content_version", pa.string())])
_VIDEO_NAME = "(" + "|".join(suffix.replace(".", r"\.") for suffix in VIDEO_SUFFIXES) + ")$"


@dataclass(frozen=True)
class SourceListing:
    """The objects of a source."""

    videos: pa.Table
    """`LISTED_SCHEMA`, mapped from a file on disk. ``content_version`` tells one content from the next: the ETag, else
    size and time of the last change."""
    skipped: Mapping[str, int]
    """Files that are no videos by their name: suffix → count."""


def list_source(source: str) -> SourceListing:
    """List a folder or prefix, or read a manifest: CSV or Parquet with a column ``uri`` or ``path``, S3 Inventory.

    In a CSV or Parquet, relative paths start at its folder, and every row counts, whatever its suffix; of an
    inventory (``manifest.json``) and of a folder, names of videos count.

    Raises:
        StorageError: the source is missing or unreadable, or the manifest has no such column.
    """
    skipped: Counter[str] = Counter()
    place = absolute(source)
    if source.lower().endswith(MANIFEST_SUFFIXES):
        parts = _manifest_parts(place)
    elif source.lower().endswith(INVENTORY_SUFFIX):
        parts = _videos_only(_inventory(place), skipped)
    else:
        parts = _videos_only(listed_in_parts(place), skipped)
    videos = _on_disk(parts)
    return SourceListing(videos, dict(sorted(skipped.items())))


def new_or_changed(listing: SourceListing, known: KnownVideos, most: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    """Videos to probe, ``most`` at a time: those that the output does not hold in this version (`PROBED_SCHEMA`)."""
    waiting: list[pa.Table] = []
    for part in _parts(listing.videos):
        rows = part.to_pydict()
        ids = np.fromiter(map(video_id, rows["uri"], rows["content_version"]), np.int64, len(part))
        fresh = ~_among(ids, known.settled_ids)
        waiting.append(_probed(part.filter(pa.array(fresh)), ids[fresh], OK, ""))
        while sum(map(len, waiting)) >= most:
            table = pa.concat_tables(waiting)
            yield table.slice(0, most).combine_chunks()
            waiting = [table.slice(most).combine_chunks()]
    rest = pa.concat_tables([PROBED_SCHEMA.empty_table(), *waiting])
    if len(rest):
        yield rest


def tombstones(listing: SourceListing, known: KnownVideos) -> pa.Table:
    """A row of status ``deleted`` for every video that the output holds and the source no longer does."""
    if not len(known.uri_keys):
        return PROBED_SCHEMA.empty_table()
    listed = np.concatenate([np.empty(0, np.int64), *(uri_keys_of(part["uri"]) for part in _parts(listing.videos))])
    gone = known.rows(known.uri_keys[~_among(known.uri_keys, np.sort(listed))])
    names = gone.to_pydict()
    ids = np.fromiter(map(video_id, names["uri"], names["content_version"]), np.int64, len(gone))
    return _probed(gone, ids, DELETED, "no longer in the source")


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which numbers are among ``known``, sorted: without the copies that `numpy.isin` makes."""
    if not len(known):
        return np.zeros(len(ids), bool)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.asarray(known[place] == ids)


def _probed(videos: pa.Table, ids: np.ndarray, status: str, message: str) -> pa.Table:
    count = len(videos)
    columns = {
        "video_id": pa.array(ids, pa.int64()),
        "uri": videos["uri"],
        "content_version": videos["content_version"],
        "status": pa.array([status] * count, pa.string()),
        "message": pa.array([message] * count, pa.string()),
    }
    nothing = {field.name: pa.nulls(count, field.type) for field in PROBED_SCHEMA if field.name not in columns}
    return pa.table({**columns, **nothing}).select(PROBED_SCHEMA.names).cast(PROBED_SCHEMA)


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    yield from (table.slice(start, ROWS_AT_ONCE) for start in range(0, len(table), ROWS_AT_ONCE))


def _on_disk(parts: Iterable[pa.Table]) -> pa.Table:
    """The parts as one table that is mapped from a nameless temporary file."""
    with tempfile.NamedTemporaryFile(prefix="listing-") as file:
        with pa.ipc.new_file(file.name, LISTED_SCHEMA) as writer:
            for part in parts:
                writer.write_table(part.cast(LISTED_SCHEMA))
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()


def _videos_only(parts: Iterable[pa.Table], skipped: Counter[str]) -> Iterator[pa.Table]:
    for part in parts:
        names = pc.utf8_lower(part["uri"])
        is_video = pc.match_substring_regex(names, _VIDEO_NAME)
        skipped.update(os.path.splitext(name)[1] or "(none)" for name in names.filter(pc.invert(is_video)).to_pylist())
        yield _versioned(part.filter(is_video))


def _versioned(rows: pa.Table) -> pa.Table:
    """Rows of a listing → `LISTED_SCHEMA`."""
    etag = pc.cast(rows["etag"], pa.string())
    times = (pc.cast(rows[name], pa.string()) for name in ("size", "modified_ns"))
    version = pc.if_else(pc.equal(pc.fill_null(etag, ""), ""), pc.binary_join_element_wise(*times, "-"), etag)
    return pa.table({"uri": pc.cast(rows["uri"], pa.string()), "content_version": version})


def _inventory(manifest: str) -> Iterator[pa.Table]:
    """The parts of an inventory, which must tell one content of an object from the next."""
    try:
        for part in inventory_parts(manifest):
            if part["etag"].null_count:
                raise ManifestError(f"{manifest}: lists no ETag")
            yield part
    except ManifestError as error:
        raise StorageError(manifest, str(error), "give an S3 Inventory's manifest.json with the field ETag") from error


def _manifest_parts(manifest: str) -> Iterator[pa.Table]:
    """The rows of a manifest with the versions that listings of their folders tell; one listing per folder."""
    uris = [_resolve(path, manifest) for path in _manifest_paths(manifest)]
    listed: dict[str, str] = {}
    for folder in sorted({uri.rsplit("/", 1)[0] for uri in uris}):
        rows = _versioned(_folder(folder)).to_pydict()
        listed.update(zip(rows["uri"], rows["content_version"], strict=True))
    names = list(dict.fromkeys(uris))
    yield pa.table({"uri": pa.array(names, pa.string()), "content_version": [listed.get(u, "missing") for u in names]})


def _manifest_paths(manifest: str) -> list[str]:
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
    return read_columns(manifest)


def _resolve(path: str, manifest: str) -> str:
    if "://" in path or os.path.isabs(path):
        return path
    return join(manifest.rsplit("/", 1)[0], path)


def _folder(folder: str) -> pa.Table:
    try:
        return list_files(folder, recursive=False)
    except StorageError as error:
        if not error.missing:
            raise
        return LISTING_SCHEMA.empty_table()
