"""Reading a prepared set: what it holds, which clips are wanted, and row groups through a bounded cache."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.schema import CLIP_SCHEMA, UNLABELLED
from pipeline.storage.files import StorageError, absolute, filesystem, join, read_json
from pipeline.storage.parquet import read_by_arrow, read_columns
from pipeline.storage.retry import in_threads

Split = Literal["train", "val", "test", "all"] | str
Ints = npt.NDArray[np.int64]

READERS = 8
CACHE_BYTES = 512 * 2**20
_REMEDY = "check the prepared set, or prepare it again"


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One Parquet file of clips."""

    uri: str
    row_groups: tuple[int, ...]
    """Rows of each row group."""


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A committed version of a prepared set."""

    uri: str
    version: int
    digest: str
    """Of its shards' content and its class list; pins what a run was trained on."""
    classes: tuple[str, ...]
    """Class names; a label's index is its place here."""
    shards: tuple[ShardFile, ...]
    counts: Mapping[str, Any] = dataclasses.field(compare=False)
    """Figures of prepare's report."""

    def num_clips(self, split: Split, labelled_only: bool = False) -> int:
        """Clips of a split, optionally only those with a label."""
        return int(self.selection(split, labelled_only).clips_per_group.sum())

    def selection(self, split: Split, labelled_only: bool = False, balance_classes: bool = False) -> Selection:
        """The clips to use, by a pass over the small columns of all shards (no video is read).

        Args:
            balance_classes: clips of small classes several times, so that every class has as many as the largest.
        """
        return _select(self, split, labelled_only, balance_classes)

    def classes_without_clips(self, split: Split) -> list[str]:
        """Names of the class list that no clip of a split has."""
        index = clip_index(self)
        mask = pc.fill_null(pc.equal(index["split"], split), False)
        there = set(pc.unique(index["label"].filter(mask)).to_pylist())
        return [name for name in self.classes if name not in there]

    def splits(self) -> dict[str, int]:
        """Clips by split name."""
        values = pc.value_counts(pc.fill_null(clip_index(self)["split"], "none"))
        return {entry["values"].as_py(): entry["counts"].as_py() for entry in values}


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which rows of which row groups are used, counted over the row groups in the set's order."""

    groups: tuple[tuple[str, int], ...]
    """Shard URI and number within the shard, of every row group of the set."""
    clips_per_group: Ints
    """Wanted clips of each row group. [groups]"""
    rows: npt.NDArray[np.int32]
    """Row within its row group of each wanted clip. [clips]"""
    copies: npt.NDArray[np.int32]
    """How often each of these clips came before: 0 everywhere, unless classes are balanced. [clips]"""

    @functools.cached_property
    def first_clip(self) -> Ints:
        """Number of the first wanted clip of each row group, and at last that of all clips. [groups + 1]"""
        return np.concatenate([[0], np.cumsum(self.clips_per_group)])


def open_prepared(uri: str, version: int | None = None) -> PreparedSet:
    """The newest version of a prepared set, or a given one; `StorageError` where none is committed."""
    uri = absolute(uri)
    place = join(uri, "dataset.json") if version is None else join(uri, "versions", f"{version:04d}.json")
    try:
        record = read_json(place)
    except StorageError as error:
        if not error.missing:
            raise
        remedy = f"run `python -m jobs.prepare source=... output={uri}` first"
        raise StorageError(place, "no prepared set is committed here", remedy, missing=True) from error
    except ValueError as error:
        raise StorageError(place, "is not a prepared set's record", "give the output of prepare") from error
    shards = (ShardFile(join(uri, shard["file"]), tuple(shard["row_groups"])) for shard in record["shards"])
    return PreparedSet(
        uri, record["version"], record["digest"], tuple(record["classes"]), tuple(shards), record["counts"]
    )


@functools.lru_cache(maxsize=4)
def clip_index(prepared: PreparedSet) -> pa.Table:
    """``clip_id, label, split`` of every clip, in the order of shards and rows."""
    columns = ["clip_id", "label", "split"]
    tables = in_threads(READERS, lambda shard: read_shard(shard.uri, columns), prepared.shards)
    return pa.concat_tables([CLIP_SCHEMA.empty_table().select(columns), *tables])


def read_shard(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a whole shard."""
    return read_columns(uri, columns, _REMEDY)


class RowGroupReader:
    """Row groups by number, read side by side, the most recent ones kept up to ``cache_bytes``."""

    def __init__(self, selection: Selection, cache_bytes: int = CACHE_BYTES) -> None:
        self.selection = selection
        self.cache_bytes = cache_bytes
        self.bytes_read = 0
        self._pool = ThreadPoolExecutor(READERS)
        self._groups: OrderedDict[int, Future[pa.Table]] = OrderedDict()
        self._files = functools.lru_cache(maxsize=64)(_OpenShard)

    def prefetch(self, clips: Iterable[int]) -> None:
        """Begin to read the row groups of these clips."""
        for group in dict.fromkeys(self._group(clip) for clip in clips):
            self._request(group)

    def clip(self, clip: int) -> pa.Table:
        """The one row of a clip, by its number in the selection."""
        group = self._group(clip)
        try:
            table = self._request(group).result()
        except StorageError:
            del self._groups[group]
            raise
        self._shrink()
        return table.slice(int(self.selection.rows[clip]), 1)

    def _group(self, clip: int) -> int:
        return int(np.searchsorted(self.selection.first_clip, clip, "right")) - 1

    def _request(self, group: int) -> Future[pa.Table]:
        if group not in self._groups:
            self._groups[group] = self._pool.submit(self._read, group)
        self._groups.move_to_end(group)
        return self._groups[group]

    def _read(self, group: int) -> pa.Table:
        uri, number = self.selection.groups[group]

        def read(_files: pyarrow.fs.FileSystem, _path: str) -> pa.Table:
            try:
                return self._files(uri).read_row_group(number)
            except OSError:
                self._files.cache_clear()  # what the open file has buffered may be cut short
                raise

        table = read_by_arrow(uri, read, _REMEDY)
        self.bytes_read += table.nbytes
        return table

    def _shrink(self) -> None:
        """Forget the row groups that were used longest ago; the newest two stay whatever they weigh."""
        done = [group for group, future in self._groups.items() if future.done() and not future.exception()]
        held = sum(self._groups[group].result().nbytes for group in done)
        for group in done[:-2]:
            if held <= self.cache_bytes:
                return
            held -= self._groups.pop(group).result().nbytes


class _OpenShard:
    """A shard whose footer is read; Arrow's readers want one thread at a time."""

    def __init__(self, uri: str) -> None:
        files, path = filesystem(uri)
        self._file = pq.ParquetFile(files.open_input_file(path), pre_buffer=True)
        self._lock = threading.Lock()

    def read_row_group(self, number: int) -> pa.Table:
        with self._lock:
            return self._file.read_row_group(number)


@functools.lru_cache(maxsize=8)
def _select(prepared: PreparedSet, split: str, labelled_only: bool, balance_classes: bool) -> Selection:
    index = clip_index(prepared)
    wanted = np.ones(len(index), bool)
    if split != "all":
        wanted &= pc.fill_null(pc.equal(index["split"], split), False).to_numpy()
    if labelled_only:
        wanted &= pc.is_valid(index["label"]).to_numpy()
    sizes = np.array([rows for shard in prepared.shards for rows in shard.row_groups], np.int64)
    groups = tuple((shard.uri, number) for shard in prepared.shards for number in range(len(shard.row_groups)))
    of_group = np.repeat(np.arange(len(sizes)), sizes)
    row_in_group = np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = np.ones(int(wanted.sum()), np.int64)
    if balance_classes:
        times = times_to_balance(label_indices(index["label"], prepared.classes)[wanted])
    per_group = np.bincount(np.repeat(of_group[wanted], times), minlength=len(sizes)).astype(np.int64)
    copies = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    rows = np.repeat(row_in_group[wanted], times)
    return Selection(groups, per_group, rows.astype(np.int32), copies.astype(np.int32))


def times_to_balance(labels: Ints) -> Ints:
    """How often each clip must come so that every class that occurs comes as often as the largest: int64 [clips].

    Where that is no whole number of times, the first clips of the class come once more. Clips without a label (-1)
    come once.
    """
    times = np.ones(len(labels), np.int64)
    labelled = labels != UNLABELLED
    counts = np.bincount(labels[labelled])
    for number in np.flatnonzero(counts):
        members = np.flatnonzero(labels == number)
        whole, rest = divmod(int(counts.max()), len(members))
        times[members] = whole
        times[members[:rest]] += 1
    return times


def label_indices(labels: pa.ChunkedArray | pa.Array, classes: Sequence[str]) -> Ints:
    """Labels' places in the class list; ``UNLABELLED`` where there is none."""
    found: Ints = pc.fill_null(pc.index_in(labels, pa.array(classes, pa.string())), UNLABELLED).to_numpy()
    return found.astype(np.int64)
