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

from pipeline.manifest.build import plain_uri, read_uris
from pipeline.manifest.formats import is_list
from pipeline.manifest.leftovers import videos_of
from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.text_columns import ManifestError
from pipeline.manifest.vanished import EXAMPLES, Vanished
from pipeline.schema import DELETED, OK
from pipeline.storage.files import (
    LISTING_SCHEMA,
    StorageError,
    absolute,
    content_versions,
    list_files,
    listed_in_parts,
)
from pipeline.tagging.reader import KnownVideos, uri_keys_of
from pipeline.tagging.windows import PROBED_SCHEMA, video_id

INVENTORY_SUFFIX = ".json"
ROWS_AT_ONCE = 100_000
MISSING_VERSION = "missing"
LISTED_SCHEMA = pa.schema([("uri", pa.string()), ("content_version", pa.string())])


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


def list_source(source: str) -> SourceListing:
    """List a folder or prefix, or read a list of videos (as `pipeline.manifest` does for `prepare`) or an S3 Inventory.

    Of a list every row counts, whatever its suffix; of a folder and of an inventory (``manifest.json``), the names of
    videos.

    Raises:
        StorageError: the source is missing or unreadable, or does not follow its convention.
    """
    skipped: Counter[str] = Counter()
    uri = absolute(source)
    if is_list(uri):
        parts = _listed_by_hand(uri)
    elif uri.lower().endswith(INVENTORY_SUFFIX):
        parts = _videos_only(_inventory(uri), "", skipped)
    else:
        parts = _videos_only(listed_in_parts(uri), plain_uri(uri).rstrip("/") + "/", skipped)
    videos = _on_disk(parts)
    return SourceListing(videos, dict(sorted(skipped.items())))


def new_or_changed(listing: SourceListing, known: KnownVideos, most: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    """Videos to probe, ``most`` at a time: those whose content the output does not hold (`PROBED_SCHEMA`)."""
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
    deleted = known.rows(_unlisted(listing, known))
    names = deleted.to_pydict()
    ids = np.fromiter(map(video_id, names["uri"], names["content_version"]), np.int64, len(deleted))
    return _probed(deleted, ids, DELETED, "no longer in the source")


def vanished(listing: SourceListing, known: KnownVideos) -> Vanished:
    """The videos that would lose their rows: no longer listed, or named by a list while their file is missing."""
    nothing = np.empty(0, np.int64)
    missing = [part.filter(pc.equal(part["content_version"], MISSING_VERSION)) for part in _parts(listing.videos)]
    named = np.concatenate([nothing, *(uri_keys_of(part["uri"]) for part in missing)])
    named = named[_among(named, known.uri_keys)]
    before = known.rows(np.concatenate([_unlisted(listing, known), named]))
    # A file that was missing in the last run as well has no rows to lose.
    gone = before.filter(pc.not_equal(before["content_version"], MISSING_VERSION))["uri"]
    present = len(listing.videos) - sum(map(len, missing))
    return Vanished(len(gone), gone.slice(0, EXAMPLES).to_pylist(), len(known.uri_keys), present == 0)


def _unlisted(listing: SourceListing, known: KnownVideos) -> np.ndarray:
    """`uri_key` of the videos that the output holds and the source does not list."""
    return np.asarray(known.uri_keys[~_among(known.uri_keys, listing.uri_keys)])


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which numbers are among ``known``, sorted: without the copies that `numpy.isin` makes."""
    if not len(known):
        return np.zeros(len(ids), bool)
    nearest = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.asarray(known[nearest] == ids)


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


def _videos_only(parts: Iterable[pa.Table], prefix: str, skipped: Counter[str]) -> Iterator[pa.Table]:
    yield from (_versioned(videos_of(part, prefix, skipped)) for part in parts)


def _versioned(rows: pa.Table) -> pa.Table:
    """Rows of a listing → `LISTED_SCHEMA`."""
    return pa.table({"uri": pc.cast(rows["uri"], pa.string()), "content_version": content_versions(rows)})


def _inventory(manifest: str) -> Iterator[pa.Table]:
    """The parts of an inventory, whose ETags distinguish one content of an object from the next."""
    try:
        for part in inventory_parts(manifest):
            if part["etag"].null_count:
                raise ManifestError(f"{manifest}: lists no ETag")
            yield part
    except ManifestError as error:
        raise StorageError(manifest, str(error), "give an S3 Inventory's manifest.json with the field ETag") from error


def _listed_by_hand(source: str) -> Iterator[pa.Table]:
    """The videos of a list, each once, with the versions that listings of their folders give; one listing a folder."""
    versions: dict[str, str | None] = {}
    try:
        for part in read_uris(source):
            rows = part.to_pydict()
            for uri, version in zip(rows["uri"], rows["content_version"], strict=True):
                versions[uri] = versions.get(uri) or version
    except ManifestError as error:
        happened, _, remedy = str(error).removeprefix(f"{source}: ").rpartition("; ")
        raise StorageError(source, happened, remedy) from error
    listed: dict[str, str] = {}
    for folder in sorted({uri.rpartition("/")[0] for uri, version in versions.items() if version is None}):
        found = _versioned(_folder(folder)).to_pydict()
        listed.update(zip(found["uri"], found["content_version"], strict=True))
    known = [version or listed.get(uri, MISSING_VERSION) for uri, version in versions.items()]
    yield pa.table({"uri": pa.array(versions, pa.string()), "content_version": pa.array(known, pa.string())})


def _folder(folder: str) -> pa.Table:
    try:
        return list_files(folder, recursive=False)
    except StorageError as error:
        if not error.missing:
            raise
        return LISTING_SCHEMA.empty_table()
