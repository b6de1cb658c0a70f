"""What there is to tag: a folder, a prefix, a list or an inventory, against what an output already holds.

Collections of millions are read in parts and kept on disk, mapped into memory; comparing takes a few bytes a video.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import first_occurrences, positions, private_digests
from pipeline.manifest.build import read_uris
from pipeline.manifest.errors import ManifestError
from pipeline.manifest.formats import is_list
from pipeline.manifest.leftovers import videos_of
from pipeline.manifest.packed import holds_pictures, packed_convention
from pipeline.manifest.path_index import plain_uri
from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.vanished import EXAMPLES, Vanished
from pipeline.media import Media
from pipeline.storage.files import (
    absolute,
    content_versions,
    list_existing,
    list_files,
    listed_in_parts,
)
from pipeline.storage.members import containers_of
from pipeline.storage.parquet import mapped_table
from pipeline.tagging.reader import KnownVideos, content_keys_of, uri_keys_of

INVENTORY_SUFFIX = ".json"
TAR_SUFFIX, PARQUET_SUFFIX = ".tar", ".parquet"
ROWS_AT_ONCE = 100_000
MISSING_VERSION = "missing"
LISTED_SCHEMA = pa.schema([("uri", pa.string()), ("content_version", pa.string()), ("size", pa.int64())])
"""``size`` in bytes, null where the source does not say."""
_NAMED_SCHEMA = pa.schema([LISTED_SCHEMA.field("uri"), LISTED_SCHEMA.field("content_version")])
PLANNED_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_version", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("replaces", pa.int64()),
    ]
)
"""A video to tag; ``replaces`` is the `video_id` under which the output holds rows of this URI."""


@dataclass(frozen=True)
class SourceListing:
    """The objects of a source."""

    videos: pa.Table
    """`LISTED_SCHEMA`, mapped from a file on disk (`pipeline.storage.files.content_versions`)."""
    skipped: Mapping[str, int]
    """Files that are no videos of the collection: kind (`pipeline.manifest.leftovers.videos_of`) → count."""

    @functools.cached_property
    def uri_keys(self) -> np.ndarray:
        """`uri_key` of every video, sorted."""
        keys = [uri_keys_of(part["uri"]) for part in _parts(self.videos)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *keys]))


def list_source(source: str, media: Media = "video") -> SourceListing:
    """List a folder or prefix, or read a list of videos (as `pipeline.manifest` does for `prepare`) or an S3 Inventory.

    Of a list every row counts, whatever its suffix; of a folder and of an inventory (``manifest.json``), the names of
    videos, or of images. A folder that holds none but tar files, or Parquet files with pictures inside, and such a file
    itself, are their members, each with its container's version.

    Raises:
        ManifestError: a list or an inventory that does not follow its convention.
        StorageError: the source is missing or unreadable.
    """
    skipped: Counter[str] = Counter()
    uri = absolute(source)
    if is_list(uri) or uri.lower().endswith(TAR_SUFFIX):
        parts = _listed_by_hand(uri, media)
    elif uri.lower().endswith(INVENTORY_SUFFIX):
        parts = _videos_only(_inventory(uri), "", skipped, media)
    else:
        parts = _videos_only(listed_in_parts(uri), plain_uri(uri).rstrip("/") + "/", skipped, media)
    videos = _on_disk(parts)
    if not len(videos) and _is_packed(uri, skipped):
        videos = _on_disk(_listed_by_hand(uri, media))
        skipped = Counter({kind: count for kind, count in skipped.items() if kind not in (TAR_SUFFIX, PARQUET_SUFFIX)})
    return SourceListing(videos, dict(sorted(skipped.items())))


def new_or_changed(listing: SourceListing, known: KnownVideos, most: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    """Videos to tag, ``most`` at a time: those whose content the output does not hold (`PLANNED_SCHEMA`)."""
    waiting: list[pa.Table] = []
    for part in _parts(listing.videos):
        waiting.append(_planned(part, known))
        while sum(map(len, waiting)) >= most:
            table = pa.concat_tables(waiting)
            yield table.slice(0, most).combine_chunks()
            waiting = [table.slice(most).combine_chunks()]
    rest = pa.concat_tables([PLANNED_SCHEMA.empty_table(), *waiting])
    if len(rest):
        yield rest


def _planned(listed: pa.Table, known: KnownVideos) -> pa.Table:
    """Those of some listed videos that are to be tagged."""
    videos = listed.filter(pa.array(positions(content_keys_of(listed), known.settled_keys) < 0))
    replaced = known.ids_of(uri_keys_of(videos["uri"])) if len(known) else np.full(len(videos), -1, np.int64)
    columns = {
        "uri": videos["uri"],
        "content_version": videos["content_version"],
        "size": videos["size"],
        "replaces": pa.array(replaced, pa.int64(), mask=replaced < 0),
    }
    return pa.table(columns).cast(PLANNED_SCHEMA)


def deleted(listing: SourceListing, known: KnownVideos) -> pa.Table:
    """``uri, content_version, video_id`` of every video that the output holds and the source no longer does."""
    return known.rows(_unlisted(listing, known))


def vanished(listing: SourceListing, known: KnownVideos) -> Vanished:
    """The videos that would lose their rows: no longer listed, or named by a list while their file is missing."""
    nothing = np.empty(0, np.int64)
    missing = [part.filter(pc.equal(part["content_version"], MISSING_VERSION)) for part in _parts(listing.videos)]
    named = np.concatenate([nothing, *(uri_keys_of(part["uri"]) for part in missing)])
    named = named[positions(named, known.uri_keys) >= 0]
    before = known.rows(np.concatenate([_unlisted(listing, known), named]))
    # A file that was missing in the last run as well has no rows to lose.
    lost = before.filter(pc.not_equal(before["content_version"], MISSING_VERSION))["uri"]
    present = len(listing.videos) - sum(map(len, missing))
    return Vanished(len(lost), lost.slice(0, EXAMPLES).to_pylist(), len(known.uri_keys), present == 0)


def _unlisted(listing: SourceListing, known: KnownVideos) -> np.ndarray:
    """`uri_key` of the videos that the output holds and the source does not list."""
    return np.asarray(known.uri_keys[positions(known.uri_keys, listing.uri_keys) < 0])


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    yield from (table.slice(start, ROWS_AT_ONCE) for start in range(0, len(table), ROWS_AT_ONCE))


def _on_disk(parts: Iterable[pa.Table]) -> pa.Table:
    """The parts as one table that is mapped from a nameless temporary file."""
    with tempfile.NamedTemporaryFile(prefix="listing-") as file:
        with pa.ipc.new_file(file.name, LISTED_SCHEMA) as writer:
            for part in parts:
                writer.write_table(part.cast(LISTED_SCHEMA))
        return mapped_table(file.name)


def _videos_only(parts: Iterable[pa.Table], prefix: str, skipped: Counter[str], media: Media) -> Iterator[pa.Table]:
    yield from (_versioned(videos_of(part, prefix, skipped, media)) for part in parts)


def _is_packed(folder: str, skipped: Mapping[str, int]) -> bool:
    """Whether a folder without loose media holds them in tar files, or in Parquet files (not any other tables)."""
    convention = packed_convention(skipped)
    if convention != "huggingface":
        return convention is not None
    return holds_pictures(list_files(folder, (PARQUET_SUFFIX,))["uri"][0].as_py())


def _versioned(rows: pa.Table) -> pa.Table:
    """Rows of a listing → `LISTED_SCHEMA`; what cannot be looked at is as missing as a file that a list names."""
    versions = pc.fill_null(content_versions(rows), MISSING_VERSION)
    return pa.table({"uri": pc.cast(rows["uri"], pa.string()), "content_version": versions, "size": rows["size"]})


def _inventory(manifest: str) -> Iterator[pa.Table]:
    """The parts of an inventory, whose ETags distinguish one content of an object from the next."""
    for part in inventory_parts(manifest):
        if part["etag"].null_count:
            raise ManifestError(f"{manifest}: lists no ETag; give an S3 Inventory with the field ETag")
        yield part


def _listed_by_hand(source: str, media: Media) -> Iterator[pa.Table]:
    """The videos of a list, each once, with the versions that listings of their folders give; one listing a folder."""
    parts = [part.select(_NAMED_SCHEMA.names).cast(_NAMED_SCHEMA) for part in read_uris(source, media)]
    rows = pa.concat_tables([_NAMED_SCHEMA.empty_table(), *parts])
    uris = rows["uri"].filter(pa.array(first_occurrences(private_digests(rows["uri"]))))
    given = _rows_of(uris, rows.filter(pc.not_equal(pc.fill_null(rows["content_version"], ""), "")))["content_version"]
    containers = containers_of(uris)
    folders = _folders_of(containers.filter(pc.is_null(given)))
    found = [_versioned(list_existing(folder, recursive=False)).cast(LISTED_SCHEMA) for folder in folders]
    listed = _rows_of(containers, pa.concat_tables([LISTED_SCHEMA.empty_table(), *found]))
    sizes = pc.if_else(pc.equal(containers, uris), listed["size"], pa.scalar(None, pa.int64()))
    versions = pc.coalesce(given, listed["content_version"], MISSING_VERSION)
    yield pa.table({"uri": uris, "content_version": versions, "size": sizes})


def _rows_of(uris: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    """The first row that a table has of each URI, nulls where it has none."""
    keys = uri_keys_of(table["uri"])
    order = np.argsort(keys, kind="stable")
    rows = positions(uri_keys_of(uris), keys[order])
    numbers = order[rows] if len(order) else np.zeros(len(rows), np.int64)
    return table.take(pa.array(numbers, pa.int64(), mask=rows < 0))


def _folders_of(uris: pa.ChunkedArray) -> list[str]:
    """Where some files lie, each folder once."""
    if not len(uris):
        return []
    parents = pc.list_element(pc.split_pattern(uris, "/", max_splits=1, reverse=True), 0)
    return sorted(pc.unique(parents).to_pylist())
