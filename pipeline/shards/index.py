"""The index of a prepared set's version: label and split of every clip as numbers, and the layout of its shards.

`prepare` writes it beside the shards, as two Parquet files per version. A machine reads them once: the columns are then
files of its temporary folder that every process maps into memory, so ten processes hold one copy, and no text of a
clip is ever in memory. Sets of earlier releases have no such files; their index is built from the small columns of all
shards, once per machine.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards.digests import REMEDY, refuse_contradictions
from pipeline.storage.errors import StorageError
from pipeline.storage.files import join, read_bytes, write_bytes
from pipeline.storage.node_cache import once_per_node
from pipeline.storage.parquet import open_parquet, parquet_bytes, read_columns
from pipeline.storage.records import DAMAGED_REMEDY, DamagedError, as_record, paths_within, texts_of
from pipeline.storage.retry import in_threads

Ints = npt.NDArray[Any]
Codes = tuple[Ints, Ints]
"""Class number and split number of consecutive clips, -1 for none."""

READERS = 8
ROWS_AT_ONCE = 2**20

_CLIPS = pa.schema([pa.field("label", pa.int32()), pa.field("split", pa.int16())])
_SHARDS = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row_groups", pa.list_(pa.int32())),
        pa.field("digests", pa.list_(pa.string())),
        pa.field("sha256", pa.string()),
    ]
)
_SPLITS = b"splits"


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One Parquet file of clips."""

    uri: str
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    sha256: str = ""
    digests: tuple[str, ...] = ()
    """Of each row group (`digests.group_digest`); none in a shard of an older release."""


@dataclasses.dataclass(frozen=True)
class IndexFiles:
    """The two files of an index, with their digests."""

    clips: str
    clips_sha256: str
    shards: str
    shards_sha256: str


@dataclasses.dataclass(frozen=True)
class ClipIndex:
    """What a version holds, in the order of shards and rows. Arrays are mapped files."""

    label: Ints
    """Class numbers, -1 without a label. [clips]"""
    split: Ints
    """Numbers of ``splits``, -1 without a split. [clips]"""
    group_start: Ints
    """Number of the first clip of each row group of the set, and at last that of all clips. [groups + 1]"""
    shard_start: Ints
    """Number of the first row group of each shard, and at last that of all row groups. [shards + 1]"""
    files: npt.NDArray[np.bytes_]
    """URI of each shard, or its path below the set. [shards]"""
    digests: npt.NDArray[np.bytes_]
    """Of each row group, in hexadecimal; empty where an older release wrote it. [groups]"""
    counts: Ints
    """Clips by split (row 0: without one) and class (column 0: unlabelled). [splits + 1, classes + 1]"""
    splits: tuple[str, ...]
    """Names of splits."""
    source: Callable[[], ClipIndex] = dataclasses.field(repr=False)
    """Opens it again; an index travels to other processes and machines as this alone."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.source, ()

    @functools.cached_property
    def groups(self) -> int:
        """Row groups of the set."""
        return len(self.group_start) - 1

    def location(self, uri: str, group: int) -> tuple[str, int]:
        """The shard's URI in the set at ``uri``, and the number within the shard, of a row group."""
        shard = int(np.searchsorted(self.shard_start, group, "right")) - 1
        return self.shard_uri(uri, shard), group - int(self.shard_start[shard])

    def digest(self, group: int) -> str:
        """The digest of a row group (`digests.group_digest`); empty in a set of an older release."""
        return str(self.digests[group], "ascii")

    def shard_uri(self, uri: str, shard: int) -> str:
        """The URI of a shard of the set at ``uri``."""
        file = self.files[shard].decode()
        return file if file.startswith("/") or "://" in file else join(uri, file)

    def counts_of(self, split: str) -> Ints:
        """Clips of a split (or "all") by class, the first number: unlabelled. [classes + 1]"""
        if split == "all":
            return np.asarray(self.counts.sum(axis=0))
        if split not in self.splits:
            return np.zeros(self.counts.shape[1], np.int64)
        return np.asarray(self.counts[self.splits.index(split) + 1])


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A column of few different texts: their names, and a number for each row, -1 for null."""

    names: Sequence[str]
    codes: Sequence[int]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Encoded:
        """Encode a column of text."""
        encoded = column.combine_chunks().dictionary_encode()
        return cls(encoded.dictionary.to_pylist(), pc.fill_null(encoded.indices, -1).to_pylist())

    @classmethod
    def from_json(cls, record: Any, uri: str) -> Encoded:
        """As `ShardClips.from_json`."""
        entries = as_record(uri, json.dumps(record), {"names": list, "codes": list})
        names, codes = texts_of(uri, entries, "names"), entries["codes"]
        if not all(type(code) is int and -1 <= code < len(names) for code in codes):
            raise DamagedError(uri, "is damaged: its 'codes' must be numbers of its 'names'", DAMAGED_REMEDY)
        return cls(names, codes)

    def numbers(self, known: Mapping[str, int]) -> Ints:
        """The rows' numbers in another list of names, -1 for those that it lacks: int32 [rows]."""
        numbers = np.array([*(known.get(name, -1) for name in self.names), -1], np.int32)
        return numbers[np.asarray(self.codes, np.int64)]


@dataclasses.dataclass(frozen=True)
class ShardClips:
    """Labels and splits of a shard's clips, in the order of its rows."""

    label: Encoded
    split: Encoded

    @classmethod
    def of(cls, clips: pa.Table) -> ShardClips:
        """Of rows with at least these two columns."""
        return cls(Encoded.of(clips["label"]), Encoded.of(clips["split"]))

    @classmethod
    def from_json(cls, record: Mapping[str, Any], uri: str) -> ShardClips:
        """Undo ``dataclasses.asdict``; ``uri`` names where it was found.

        Raises:
            DamagedError: it is something else.
        """
        return cls(Encoded.from_json(record.get("label"), uri), Encoded.from_json(record.get("split"), uri))


def write_index(
    output: str,
    name: str,
    shards: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    known: Mapping[str, ShardClips],
) -> dict[str, str]:
    """Write the index of a version; its entry for the version's record.

    Args:
        name: what the files' names begin with; equal names mean equal content.
        shards: entries of the version's record, in order.
        known: clips of shards by file; those of other shards are read from them.
    """
    missing = [shard["file"] for shard in shards if shard["file"] not in known]
    read = in_threads(READERS, lambda file: read_shard_clips(join(output, file)), missing)
    from_shards = dict(zip(missing, read, strict=True))
    splits: dict[str, int] = {}
    clips = (from_shards.get(shard["file"]) or known[shard["file"]] for shard in shards)
    return store_index(output, name, shards, _codes(clips, classes, splits), splits)


def store_index(
    output: str, name: str, shards: Sequence[Mapping[str, Any]], codes: Iterable[Codes], splits: Iterable[str]
) -> dict[str, str]:
    """Write the files of `write_index` from the numbers of all clips; ``splits`` is read after them."""
    tables = (pa.table({"label": labels, "split": of_split}, schema=_CLIPS) for labels, of_split in _in_large(codes))
    files = {"clips": parquet_bytes(tables, _CLIPS)}
    layout = {name: [shard.get(name) for shard in shards] for name in _SHARDS.names}
    schema = _SHARDS.with_metadata({_SPLITS: json.dumps(list(splits))})
    files["shards"] = parquet_bytes([pa.table(layout, schema=schema)], schema)
    entry = {}
    for kind, content in files.items():
        entry[kind] = f"index/{name}-{kind}.parquet"
        entry[f"{kind}_sha256"] = hashlib.sha256(content).hexdigest()
        write_bytes(join(output, entry[kind]), content)
    return entry


def read_shard_clips(uri: str) -> ShardClips:
    """Labels and splits of a shard, from the shard itself."""
    return ShardClips.of(read_columns(uri, ["label", "split"], REMEDY))


@functools.lru_cache(maxsize=4)
def stored_index(files: IndexFiles, classes: tuple[str, ...], digest: str) -> ClipIndex:
    """The index of the version with these classes and this digest; from object storage once per machine.

    Raises:
        StorageError: it cannot be read, or is not what `prepare` wrote.
    """
    content = json.dumps([*dataclasses.astuple(files), list(classes), digest])
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    folder = once_per_node("set-index", key, functools.partial(_copy_stored, files, classes, digest))
    return _mapped(folder, functools.partial(stored_index, files, classes, digest))


@functools.lru_cache(maxsize=4)
def built_index(shards: tuple[ShardFile, ...], classes: tuple[str, ...], digest: str) -> ClipIndex:
    """The index of a version of an earlier release, from the small columns of its shards; once per machine."""
    content = json.dumps([digest, list(classes), [dataclasses.astuple(shard) for shard in shards]])
    key = hashlib.sha256(content.encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        clips = in_threads(READERS, read_shard_clips, [shard.uri for shard in shards])
        splits: dict[str, int] = {}
        files = [shard.uri for shard in shards]
        groups = np.array([len(shard.row_groups) for shard in shards], np.int64)
        rows = np.array([rows for shard in shards for rows in shard.row_groups], np.int64)
        digests = [digest for shard in shards for digest in shard.digests or [""] * len(shard.row_groups)]
        _write_layout(folder, files, groups, rows, digests)
        _write_clips(folder, int(rows.sum()), len(classes), _codes(clips, classes, splits))
        (folder / "splits.json").write_text(json.dumps(list(splits)))

    folder = once_per_node("set-index", key, build)
    return _mapped(folder, functools.partial(built_index, shards, classes, digest))


def _copy_stored(files: IndexFiles, classes: tuple[str, ...], digest: str, folder: Path) -> None:
    try:
        _copy(files, classes, digest, folder)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, pa.ArrowException) as error:
        happened = f"{type(error).__name__}: {str(error)[:100]}"
        raise StorageError(files.shards, f"is damaged or not an index of a set ({happened})", REMEDY) from error


def _copy(files: IndexFiles, classes: tuple[str, ...], digest: str, folder: Path) -> None:
    layout = open_parquet(pa.BufferReader(_checked(files.shards, files.shards_sha256)), files.shards).read()
    groups = layout["row_groups"].combine_chunks()
    rows = groups.flatten().to_numpy().astype(np.int64)
    shards = layout["file"].to_pylist()
    paths_within(files.shards, shards)
    digests = layout.select(["row_groups", "digests", "sha256"]).to_pylist()
    refuse_contradictions(files.shards, {"shards": digests, "classes": classes, "digest": digest})
    of_groups = [digest for shard in digests for digest in shard["digests"] or [""] * len(shard["row_groups"])]
    _write_layout(folder, shards, np.diff(groups.offsets.to_numpy()), rows, of_groups)
    splits = json.loads(layout.schema.metadata[_SPLITS])
    (folder / "splits.json").write_text(json.dumps(splits))
    clips = open_parquet(pa.BufferReader(_checked(files.clips, files.clips_sha256)), files.clips)
    batches = clips.iter_batches(ROWS_AT_ONCE)
    codes = ((batch["label"].to_numpy(), batch["split"].to_numpy()) for batch in batches)
    _write_clips(folder, int(rows.sum()), len(classes), codes)


def _checked(uri: str, sha256: str) -> bytes:
    content = read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageError(uri, "is not the index that this version's record names", REMEDY)
    return content


def _codes(clips: Iterable[ShardClips], classes: Sequence[str], splits: dict[str, int]) -> Iterator[Codes]:
    """The numbers of each shard's clips; ``splits`` gets the names that occur."""
    labels = {name: number for number, name in enumerate(classes)}
    for of_shard in clips:
        for name in of_shard.split.names:
            splits.setdefault(name, len(splits))
        yield of_shard.label.numbers(labels), of_shard.split.numbers(splits)


def _in_large(parts: Iterable[Codes]) -> Iterator[Codes]:
    """The same numbers, in pieces of `ROWS_AT_ONCE` or somewhat more."""
    held: list[Codes] = []
    for part in parts:
        held.append(part)
        if sum(len(labels) for labels, _ in held) >= ROWS_AT_ONCE:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Codes]) -> Codes:
    labels, splits = zip(*parts, strict=True)
    return np.concatenate(labels).astype(np.int32), np.concatenate(splits).astype(np.int16)


def _write_layout(folder: Path, files: Sequence[str], groups: Ints, rows: Ints, digests: Sequence[str]) -> None:
    """
    Args:
        groups: row groups of each shard.
        rows: of each row group.
        digests: of each row group.
    """
    np.save(folder / "digests.npy", np.array([digest.encode() for digest in digests], np.bytes_))
    np.save(folder / "files.npy", np.array([file.encode() for file in files], np.bytes_))
    np.save(folder / "shard_start.npy", np.concatenate([[0], np.cumsum(groups)]).astype(np.int64))
    np.save(folder / "group_start.npy", np.concatenate([[0], np.cumsum(rows)]).astype(np.int64))


def _write_clips(folder: Path, clips: int, classes: int, parts: Iterable[Codes]) -> None:
    label = _new_array(folder / "label.npy", np.min_scalar_type(-max(classes, 1)), clips)
    split = _new_array(folder / "split.npy", np.int16, clips)
    counts = np.zeros((1, classes + 1), np.int64)
    start = 0
    for labels, splits in parts:
        stop = start + len(labels)
        label[start:stop], split[start:stop] = labels, splits
        cells = (splits.astype(np.int64) + 1) * (classes + 1) + labels + 1
        counted = np.bincount(cells, minlength=counts.size)
        rows = -(-len(counted) // (classes + 1))
        counts = np.pad(counts, ((0, max(0, rows - len(counts))), (0, 0)))
        counts.reshape(-1)[: len(counted)] += counted
        start = stop
    if start != clips:
        raise StorageError(str(folder), f"index of {start} clips, the shards hold {clips}", REMEDY)
    np.save(folder / "counts.npy", counts)


def _new_array(path: Path, dtype: npt.DTypeLike, length: int) -> Ints:
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (length,))


def _mapped(folder: Path, source: Callable[[], ClipIndex]) -> ClipIndex:
    names = ("label", "split", "group_start", "shard_start", "files", "digests", "counts")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    return ClipIndex(**arrays, splits=tuple(json.loads((folder / "splits.json").read_text())), source=source)
