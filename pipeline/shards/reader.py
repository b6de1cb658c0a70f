"""Reading a prepared set: what it holds, which clips are wanted, and row groups through a bounded cache."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from pipeline.media import Media
from pipeline.schema import UNLABELLED
from pipeline.shards.digests import REMEDY, refuse_contradictions, refuse_other_clips
from pipeline.shards.index import READERS, ClipIndex, IndexFiles, ShardFile, built_index, stored_index
from pipeline.shards.row_groups import OpenShard
from pipeline.shards.selection import Selection, Wanted
from pipeline.storage.files import StorageError, absolute, join, read_json
from pipeline.storage.parquet import read_by_arrow, read_columns
from pipeline.storage.records import Types, is_whole_number, paths_within

Split = Literal["train", "val", "test", "all"] | str
Ints = npt.NDArray[np.int64]

CACHE_BYTES = 512 * 2**20
# Of a cache with the capacity for a window of row groups, so that nothing that is still needed has to leave it.
AHEAD_BYTES = CACHE_BYTES // 8
READINGS_AT_ONCE = 16
SET_RECORD: Mapping[str, Types] = {"version": int, "digest": str, "classes": list, "counts": dict}


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A committed version of a prepared set. Small, whatever the set holds: it travels to every worker."""

    uri: str
    version: int
    digest: str
    """Of its shards' content and its class list; pins what a run was trained on."""
    classes: tuple[str, ...]
    """Class names; a label's index is its position here."""
    shards: tuple[ShardFile, ...]
    """Of a version that an earlier release wrote, without an index; empty otherwise."""
    counts: Mapping[str, Any] = dataclasses.field(compare=False)
    """Figures of prepare's report."""
    index: IndexFiles | None = None
    media: Media = "video"
    """What its clips are; an image is a clip of one frame."""

    def num_clips(self, split: Split, labelled_only: bool = False) -> int:
        """Clips of a split, optionally only those with a label."""
        counts = clip_index(self).counts_of(split)
        return int(counts[1:].sum() if labelled_only else counts.sum())

    def selection(self, split: Split, labelled_only: bool = False, balance_classes: bool = False) -> Selection:
        """The clips to use, by a pass over the index (no shard is read).

        Args:
            balance_classes: clips of small classes several times, so that every class has as many as the largest.
        """
        return _selection(self, Wanted(split, labelled_only, balance_classes))

    def classes_without_clips(self, split: Split) -> list[str]:
        """Names of the class list that no clip of a split has."""
        counts = clip_index(self).counts_of(split)[1:].tolist()
        return [name for name, clips in zip(self.classes, counts, strict=True) if not clips]

    def splits(self) -> dict[str, int]:
        """Clips by split name."""
        index = clip_index(self)
        clips = index.counts.sum(axis=1).tolist()
        return {name: number for name, number in zip(("none", *index.splits), clips, strict=True) if number}


def open_prepared(uri: str, version: int | None = None) -> PreparedSet:
    """The newest version of a prepared set, or a given one; `StorageError` where none is committed."""
    uri = absolute(uri)
    record_uri = join(uri, "dataset.json") if version is None else join(uri, "versions", f"{version:04d}.json")
    try:
        record = read_json(record_uri, SET_RECORD)
    except StorageError as error:
        if not error.missing:
            raise
        remedy = f"run `python -m jobs.prepare source=... output={uri}` first"
        raise StorageError(record_uri, "no prepared set is committed here", remedy, missing=True) from error
    if not all(isinstance(name, str) for name in record["classes"]):
        raise StorageError(record_uri, "is damaged: its classes must be names", REMEDY)
    index = _index_files(uri, record_uri, record["index"]) if "index" in record else None
    entries = () if index else _listed(record_uri, record.get("shards"))
    shards = tuple(_shard(uri, record_uri, entry) for entry in entries)
    if not index:
        refuse_contradictions(record_uri, record)  # those of an index are looked at when it is read
    return PreparedSet(
        uri, record["version"], record["digest"], tuple(record["classes"]), shards, record["counts"], index,
        media_of(record),
    )  # fmt: skip


def media_of(record: Mapping[str, Any]) -> Media:
    """What a version holds, by its record; older releases knew videos alone."""
    found: Any = record
    for key in ("settings", "manifest", "media"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return "image" if found == "image" else "video"


def _index_files(uri: str, record_uri: str, entry: Any) -> IndexFiles:
    """An index as the record names it: files below the set."""
    names = [field.name for field in dataclasses.fields(IndexFiles)]
    texts = [entry.get(name) if isinstance(entry, dict) else None for name in names]
    if not all(isinstance(text, str) for text in texts):
        raise StorageError(record_uri, f"is damaged: names an index {str(entry)[:80]}", REMEDY)
    files = {name: str(text) for name, text in zip(names, texts, strict=True)}
    for name in ("clips", "shards"):
        files[name] = _below(uri, record_uri, files[name])
    return IndexFiles(**files)


def _listed(record_uri: str, shards: Any) -> list[Any]:
    if not isinstance(shards, list):
        raise StorageError(record_uri, "is damaged: it lists no shards", REMEDY)
    return shards


def _shard(uri: str, record_uri: str, shard: Any) -> ShardFile:
    """A shard as the record names it: a file below the set."""
    file, rows = (shard.get(key) for key in ("file", "row_groups")) if isinstance(shard, dict) else (None, None)
    if not isinstance(file, str) or not isinstance(rows, list) or not all(map(is_whole_number, rows)):
        raise StorageError(record_uri, f"is damaged: names a shard {str(shard)[:80]}", REMEDY)
    digests = shard.get("digests", ())
    if not isinstance(digests, list | tuple) or not all(isinstance(digest, str) for digest in digests):
        raise StorageError(record_uri, f"is damaged: the digests of {file[:80]} must be texts", REMEDY)
    return ShardFile(_below(uri, record_uri, file), tuple(rows), str(shard.get("sha256", "")), tuple(digests))


def _below(uri: str, record_uri: str, file: str) -> str:
    return join(uri, *paths_within(record_uri, [file]))


@functools.lru_cache(maxsize=4)
def clip_index(prepared: PreparedSet) -> ClipIndex:
    """Label and split of every clip, and where each row group lies; read once per machine."""
    if prepared.index is None:
        return built_index(prepared.shards, prepared.classes, prepared.digest)
    return stored_index(prepared.index, prepared.classes, prepared.digest)


@functools.lru_cache(maxsize=4)
def _selection(prepared: PreparedSet, wanted: Wanted) -> Selection:
    return Selection(clip_index(prepared), prepared.uri, wanted)


def read_shard(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a whole shard."""
    return read_columns(uri, columns, REMEDY)


def read_whole_shard(uri: str, shard: Mapping[str, Any]) -> pa.Table:
    """All columns of a shard of a set, by its entry in the set's record; compared with its digests.

    Raises:
        StorageError: it cannot be read, or holds other clips than were prepared.
    """
    path = join(uri, shard["file"])
    clips, start = read_shard(path), 0
    for number, (rows, digest) in enumerate(zip(shard["row_groups"], shard.get("digests", ()), strict=False)):
        refuse_other_clips(path, number, clips.slice(start, rows), digest)
        start += rows
    return clips


class Reading(NamedTuple):
    """What is read, or being read, of one group."""

    clips: Sequence[int]
    """Numbers of the clips."""
    table: Future[pa.Table]
    """A row for each."""


class RowGroupReader:
    """The wanted clips of groups by number, read side by side, the most recent ones kept up to ``cache_bytes``.

    Each row group is compared with its digest, once for every reading.
    """

    def __init__(self, selection: Selection, cache_bytes: int = CACHE_BYTES) -> None:
        self.selection = selection
        self.cache_bytes = cache_bytes
        self.bytes_read = 0
        self._pool = ThreadPoolExecutor(READINGS_AT_ONCE)
        self._groups: OrderedDict[int, Reading] = OrderedDict()
        self._arriving: set[int] = set()
        """Groups that are being read, or were since the cache was looked at."""
        self._bytes: dict[int, int] = {}
        """Of every group that is held. Arrow adds them up anew whenever it is asked, which takes longer than a clip."""
        self._readings = 0
        self._counting = threading.Lock()
        """Of ``bytes_read`` and the readings, which all threads count."""
        self._unused: set[int] = set()
        self._expected: dict[int, set[int]] = {}
        self._files = functools.lru_cache(maxsize=64)(OpenShard)

    def expect(self, clips: Iterable[int]) -> None:
        """Until the next call, read of each group only what is among these clips, or asked for without.

        For a reader that serves some of many workers: whole row groups would be read by each such reader.
        """
        self._expected = {}
        for clip in clips:
            self._expected.setdefault(self.selection.group(clip), set()).add(clip)

    def prefetch(self, clips: Iterable[int]) -> None:
        """Begin to read the groups of these clips."""
        for clip in clips:
            group = self.selection.group(clip)
            known = self._groups.get(group)
            if self._request(clip) is not known:
                self._unused.add(group)

    @property
    def may_read_ahead(self) -> bool:
        """Whether more should be requested: enough to keep all threads busy, as far as the bytes of it are few.

        Of storage that answers late, many small readings must be under way at once; of large ones, few may be.
        """
        size = self.bytes_read / self._readings if self._readings else AHEAD_BYTES / READERS
        return len(self._unused) < 2 * READINGS_AT_ONCE and len(self._unused) * size < AHEAD_BYTES

    def clip(self, clip: int) -> pa.Table:
        """The one row of a clip, by its number in the selection."""
        group, reading = self.selection.group(clip), self._request(clip)
        self._unused.discard(group)
        try:
            table = reading.table.result()
        except StorageError:
            del self._groups[group]
            self._arriving.discard(group)
            raise
        self._shrink()
        return table.slice(reading.clips.index(clip), 1)

    def _request(self, clip: int) -> Reading:
        group = self.selection.group(clip)
        reading = self._groups.get(group)
        if reading is None or clip not in reading.clips:
            clips = self._clips_to_read(group, clip)
            reading = Reading(clips, self._pool.submit(self._read, group, clips))
            self._groups[group] = reading
            self._bytes.pop(group, None)
            self._arriving.add(group)
        self._groups.move_to_end(group)
        return reading

    def _clips_to_read(self, group: int, clip: int) -> Sequence[int]:
        if not self._expected:
            return range(*self.selection.first_clip[group : group + 2].tolist())
        return sorted(self._expected.get(group, set()) | {clip})

    def _read(self, group: int, clips: Sequence[int]) -> pa.Table:
        uri, number = self.selection.location(group)
        rows = self.selection.rows(group)[np.asarray(clips) - self.selection.first_clip[group]]

        def read(_files: pyarrow.fs.FileSystem, _path: str) -> tuple[pa.Table, int]:
            try:
                return self._files(uri).read(number, rows, self.selection.digest(group))
            except OSError:
                self._files.cache_clear()  # what the open file has buffered may be cut short
                raise

        table, size = read_by_arrow(uri, read, REMEDY)
        with self._counting:
            self.bytes_read += size
            self._readings += 1
        return table

    def _shrink(self) -> None:
        """Forget the groups that were used longest ago; the newest two stay whatever they weigh."""
        arrived = [group for group in self._arriving if self._groups[group].table.done()]
        if not arrived:
            return
        self._arriving.difference_update(arrived)
        tables = {group: self._groups[group].table for group in arrived}
        self._bytes |= {group: table.result().nbytes for group, table in tables.items() if not table.exception()}
        held = sum(self._bytes.values())
        for group in [group for group in self._groups if group in self._bytes][:-2]:
            if held <= self.cache_bytes:
                return
            held -= self._bytes.pop(group)
            del self._groups[group]


def label_indices(labels: pa.ChunkedArray | pa.Array, classes: Sequence[str]) -> Ints:
    """Labels' positions in the class list; ``UNLABELLED`` where there is none."""
    found: Ints = pc.fill_null(pc.index_in(labels, pa.array(classes, pa.string())), UNLABELLED).to_numpy()
    return found.astype(np.int64)
