"""From a source and its annotations to one manifest: the videos to prepare, with label and split, and the rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import Digests, first_occurrences, name_digests, positions, seeded
from pipeline.manifest.formats import Convention, ManifestConfig, detect, locate, read_annotations
from pipeline.manifest.image_readers import VAL_NAME, read_imagenet
from pipeline.manifest.labels import class_labels, outside, recoded, unified
from pipeline.manifest.leftovers import videos_of
from pipeline.manifest.packed import packed_convention
from pipeline.manifest.path_index import ListingIndex, absolute_paths, combined, nulls, plain_uri
from pipeline.manifest.readers import Annotations, annotation_table, source_video_of
from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.splits import SPLITS, Codes, assign_splits
from pipeline.manifest.text_columns import malformed_named
from pipeline.media import Media
from pipeline.schema import REJECTED_SCHEMA
from pipeline.storage.files import (
    LISTING_SCHEMA,
    absolute,
    is_local,
    listed_in_parts,
)

_DICTIONARY = pa.dictionary(pa.int32(), pa.large_string())
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.large_string(), nullable=False),
        pa.field("label", _DICTIONARY),
        pa.field("split", _DICTIONARY, nullable=False),
        pa.field("content_version", pa.string()),
        pa.field("size", pa.int64()),
    ]
)
"""One video to prepare. ``content_version`` (`storage.files.content_versions`) and ``size`` are null when the source
was not listed; they are read when the video is opened."""

_LISTED = ("folder", "bare", "inventory", "kinetics", "ssv2", "imagenet")
_SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class Manifest:
    """The rows to prepare, the rows that cannot be, and the class list."""

    rows: pa.Table
    """`MANIFEST_SCHEMA`, as the annotations list them; `shuffled_order` gives the seeded global order."""
    rejected: pa.Table
    """`schema.REJECTED_SCHEMA`: missing files, unknown labels, duplicates."""
    classes: tuple[str, ...]
    convention: str
    names: Mapping[str, str]
    """Names for people of classes that are called otherwise (ImageNet's wnids)."""
    skipped: Mapping[str, int]
    """Files of a listed source that are no videos of the collection: kind (`leftovers.videos_of`) → count."""


@dataclass
class _Rows:
    """Annotated rows with their URIs, column by column, while they are gathered; N rows in all."""

    uris: list[pa.Array]
    """Chunks of text; null where no file was found, ``names`` then holds the name in the annotations."""
    names: list[pa.Array]
    labels: list[pa.Array]
    """Chunks with dictionaries, as are ``splits``."""
    splits: list[pa.Array]
    versions: list[pa.Array]
    sizes: list[pa.Array]
    uri_digests: list[Digests]
    source_digests: list[Digests]
    unsure: list[pa.Array]
    """Chunks of text; names the files where several are forms of the name in the annotations, else null."""


class _Checked(NamedTuple):
    """One reason to reject rows."""

    reason: str
    out: npt.NDArray[np.bool_]
    message: str | list[pa.Array]
    """One for all, or chunks of one per row."""


def read_manifest(source: str, config: ManifestConfig, *, seed: int, known_splits: pa.Table | None = None) -> Manifest:
    """Every video of ``source`` with its label and split.

    Args:
        source: folder, prefix, or a manifest file itself (CSV, Parquet).
        known_splits: columns ``uri`` and ``split`` of earlier versions of the set; they stay.

    Raises:
        ManifestError: annotations that do not follow their convention.
        StorageError: a file or folder that cannot be read.
    """
    opened = _open(source, config)
    rows = _gathered(opened)
    table, rejected, classes = _finished(rows, opened.annotations, opened.config, seed, known_splits)
    return Manifest(table, rejected, classes, opened.convention, opened.annotations.names, opened.skipped)


def read_uris(source: str, media: Media = "video") -> Iterator[pa.Table]:
    """The videos that `read_manifest` finds by a list, for readers that need neither label nor split.

    Tables of ``uri`` and ``content_version`` (null where the source was not listed). Videos that the source does not
    hold are included with the URI that they would have; a video that is listed twice comes twice.

    Raises:
        ManifestError: a list that does not follow its convention.
        StorageError: a file or folder that cannot be read.
    """
    opened = _open(source, ManifestConfig(media=media))
    rows = _gathered(opened)
    for uris, names, versions in zip(rows.uris, rows.names, rows.versions, strict=True):
        expected = absolute_paths(opened.root, pa.chunked_array([pc.cast(names, pa.large_string())]))
        yield pa.table({"uri": pc.coalesce(uris, combined(expected)), "content_version": versions})


class _Opened(NamedTuple):
    """A source and its annotations, of which no row was taken yet."""

    root: str
    config: ManifestConfig
    """With the URI of the annotations filled in."""
    convention: str
    annotations: Annotations
    listing: pa.Table | None
    """`LISTING_SCHEMA` of the videos below the root, where the convention needs it."""
    skipped: Mapping[str, int]
    """As in `Manifest`."""


def _open(source: str, config: ManifestConfig) -> _Opened:
    root, config = locate(plain_uri(absolute(source)), config)
    convention = config.convention if config.convention != "auto" else detect(root, config.annotations)
    needs_listing = convention in _LISTED or bool(config.unlisted)
    inventory = config.annotations if convention == "inventory" else None
    listing, skipped = _listing(root, inventory, config.media) if needs_listing else (None, {})
    if convention == "folder" and config.convention == "auto" and listing is not None:
        convention, listing = _unpacked(convention, listing, skipped)
    if convention == "imagenet":
        assert listing is not None
        annotations = read_imagenet(root, listing, config.annotations)
    elif convention in ("folder", "bare", "inventory"):
        assert listing is not None
        annotations = _from_folders(root, listing, convention, asked=config.convention == "folder")
    else:
        with malformed_named(config.annotations):
            annotations = read_annotations(convention, config, root)
        annotations = replace(annotations, batches=_errors_named(annotations.batches, config.annotations))
    return _Opened(root, config, convention, annotations, listing, skipped)


def _unpacked(
    convention: Convention, listing: pa.Table, skipped: Mapping[str, int]
) -> tuple[Convention, pa.Table | None]:
    """What a folder is if no folder of classes: tar or Parquet files alone, or ImageNet with flat validation images."""
    if not len(listing) and (packed := packed_convention(skipped)):
        return packed, None
    flat = pc.match_substring_regex(listing["uri"], rf"/val/{VAL_NAME}|_val/{VAL_NAME}")
    return ("imagenet" if pc.any(flat).as_py() else convention), listing


def shuffled_order(rows: pa.Table, seed: int) -> npt.NDArray[np.int64]:
    """The seeded global order of a manifest's rows: by a digest of each URI, so it does not depend on the listing."""
    return np.argsort(seeded(name_digests(rows["uri"]), seed, "order"), kind="stable")


def _listing(root: str, inventory: str | None, media: Media) -> tuple[pa.Table, Mapping[str, int]]:
    """The videos, or images, below a root, and the kinds of other files; in parts, as a prefix may hold millions."""
    prefix = root.rstrip("/") + "/"
    wanted = prefix if inventory is not None and not is_local(root) else ""
    videos: list[pa.Table] = []
    skipped: Counter[str] = Counter()
    with malformed_named(inventory or root):
        for part in listed_in_parts(root) if inventory is None else inventory_parts(inventory):
            listed = part.filter(pc.starts_with(part["uri"], wanted))
            videos.append(videos_of(listed, prefix, skipped, media))
    return pa.concat_tables(videos) if videos else LISTING_SCHEMA.empty_table(), dict(sorted(skipped.items()))


def _errors_named(batches: Iterable[pa.Table], uri: str | None) -> Iterator[pa.Table]:
    """The batches, which are read as they are taken; only errors of reading name the file."""
    with malformed_named(uri):
        yield from batches


def _from_folders(root: str, listing: pa.Table, convention: str, *, asked: bool) -> Annotations:
    """Labels from ``[train|val|test/]CLASS/...``; none when videos lie at the top or in one folder only.

    ``asked``: the user said that folders are classes; then only the videos at the top have no label.
    """
    uris = pc.cast(listing["uri"], pa.large_string())
    prefix = "" if convention == "inventory" and is_local(root) else root.rstrip("/") + "/"
    relative = pc.utf8_slice_codeunits(uris, start=len(prefix))
    splits = "|".join(_SPLIT_FOLDERS)
    found = pc.extract_regex(relative, rf"^(?:(?P<split>{splits})/)?(?:(?P<label>[^/]+)/)?.*[^/]+$")
    label = _null_if_empty(pc.struct_field(found, "label"))
    split = _null_if_empty(pc.struct_field(found, "split"))
    looks_like_classes = label.null_count == 0 and len(pc.unique(label)) > 1
    in_classes = asked or (convention != "bare" and looks_like_classes)
    if not in_classes:
        label = split = pa.nulls(len(uris), pa.large_string())
    else:
        names = pa.array(list(_SPLIT_FOLDERS), pa.large_string())
        ours = pa.array(list(_SPLIT_FOLDERS.values()), pa.large_string())
        split = pc.take(ours, pc.index_in(split, names))
    return Annotations([annotation_table(path=uris, label=label, split=split)])


def _null_if_empty(values: Any) -> Any:
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)


def _gathered(opened: _Opened) -> _Rows:
    """Find the URI of every annotated row, a batch at a time, and keep only the columns that are needed."""
    rows = _Rows([], [], [], [], [], [], [], [], [])
    index = None if opened.listing is None else ListingIndex(opened.listing)
    for batch in opened.annotations.batches:
        _add(rows, batch, absolute_paths(opened.root, batch["path"]), index)
    if opened.config.unlisted and index is not None:
        others = index.not_among(np.concatenate([np.empty(0, np.uint64), *rows.uri_digests]))
        _add(rows, annotation_table(path=others), others, index)
    return rows


def _add(rows: _Rows, batch: pa.Table, paths: Any, index: ListingIndex | None) -> None:
    unsure = nulls(len(batch), pa.large_string())
    if index is None:
        uris = combined(paths)
        versions, sizes = nulls(len(batch), pa.string()), nulls(len(batch), pa.int64())
    else:
        by_name = batch["path"].null_count == len(batch) > 0
        found, unsure = (index.rows_of_names(batch), unsure) if by_name else index.rows_of(paths)
        uris = pc.take(index.uris, found)
        versions, sizes = pc.take(index.versions, found), pc.take(index.sizes, found)
    source = pc.coalesce(batch["source_video"], source_video_of(uris))
    uri_digests = name_digests(pc.fill_null(uris, ""))
    is_file = source.is_null().to_numpy()
    rows.uris.append(uris)
    rows.names.append(combined(_missing_names(batch, uris)))
    rows.labels.append(combined(batch["label"]).dictionary_encode())
    rows.splits.append(combined(batch["split"]).dictionary_encode())
    rows.versions.append(versions)
    rows.sizes.append(sizes)
    rows.unsure.append(unsure)
    rows.uri_digests.append(uri_digests)
    rows.source_digests.append(np.where(is_file, uri_digests, name_digests(pc.fill_null(source, ""))))


def _missing_names(batch: pa.Table, uris: pa.Array) -> pa.Array:
    """The names in the annotations of the videos that were not found; null for the others."""
    if uris.null_count == 0:
        return nulls(len(uris), pa.string())
    names = pc.coalesce(batch["path"], batch["stem"])
    return pc.cast(pc.if_else(uris.is_null(), names, pa.scalar(None, names.type)), pa.string())


def _finished(
    rows: _Rows, annotations: Annotations, config: ManifestConfig, seed: int, known_splits: pa.Table | None
) -> tuple[pa.Table, pa.Table, tuple[str, ...]]:
    """Divide the rows into those to prepare, with their split, and the rejected, with the reason."""
    labels, label_codes = unified(rows.labels)
    labels, label_codes, classes = class_labels(labels, label_codes, annotations, config.classes)
    splits, split_codes = unified(rows.splits)
    uri_digests = np.concatenate([np.empty(0, np.uint64), *rows.uri_digests])
    rows.uri_digests.clear()
    is_file = np.concatenate([np.empty(0, np.bool_), *map(_valid, rows.uris)])
    checks = (
        _Checked("ambiguous", np.concatenate([np.empty(0, np.bool_), *map(_valid, rows.unsure)]), rows.unsure),
        _Checked("missing", ~is_file, "the annotations name it, but the source does not hold it"),
        _Checked("unknown_label", outside(label_codes, labels, classes), "its label is not in the class list"),
        _Checked(
            "unused_in_split",
            ~outside(split_codes, splits, annotations.unused, none=True),
            "the official split does not use it",
        ),
        _Checked("unknown_split", outside(split_codes, splits, SPLITS), "its split is none of train, val, test"),
        _Checked("duplicate", ~first_occurrences(uri_digests), "an earlier row names the same video"),
    )
    kept, rejected = _sifted(rows, checks)
    given = recoded(split_codes, splits, SPLITS)[kept]
    given = np.where(given < 0, _known(uri_digests[kept], known_splits), given)
    del uri_digests, checks, split_codes  # of ten million rows each weighs 80 MB
    sources = seeded(np.concatenate([np.empty(0, np.uint64), *rows.source_digests])[kept], seed, "split")
    rows.source_digests.clear()
    split = assign_splits(sources, label_codes[kept], given, val_share=config.val_share)
    table = pa.Table.from_arrays(
        [
            _kept_chunks(rows.uris, kept, pa.large_string()),
            _dictionary(label_codes[kept], labels),
            _dictionary(split, SPLITS),
            _kept_chunks(rows.versions, kept, pa.string()),
            _kept_chunks(rows.sizes, kept, pa.int64()),
        ],
        schema=MANIFEST_SCHEMA,
    )
    return table, rejected, classes


def _known(digests: Digests, known: pa.Table | None) -> Codes:
    """The split of earlier versions for each row, -1 without one."""
    if known is None or not len(known):
        return np.full(len(digests), -1, np.int32)
    names = name_digests(known["uri"])
    order = np.argsort(names)
    splits = pc.index_in(known["split"], pa.array(SPLITS)).to_numpy()[order]
    found = positions(digests, names[order])
    return np.where(found >= 0, splits[found], np.int32(-1))


def _sifted(rows: _Rows, checks: Sequence[_Checked]) -> tuple[npt.NDArray[np.bool_], pa.Table]:
    """Which rows pass every check, and the others with the first check that they failed."""
    kept = np.ones(len(checks[0].out), np.bool_)
    rejected = []
    for check in checks:
        out = kept & check.out
        kept &= ~check.out
        if out.any():
            chunks = [
                pc.coalesce(uris, pc.cast(names, uris.type)) for uris, names in zip(rows.uris, rows.names, strict=True)
            ]
            names = _kept_chunks(chunks, out, pa.large_string())
            messages = (
                pa.repeat(check.message, len(names))
                if isinstance(check.message, str)
                else _kept_chunks(check.message, out, pa.large_string())
            )
            columns = [names, pa.repeat(check.reason, len(names)), messages]
            rejected.append(pa.table(columns, names=REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA))
    return kept, pa.concat_tables([REJECTED_SCHEMA.empty_table(), *rejected])


def _kept_chunks(chunks: list[pa.Array], kept: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.ChunkedArray:
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    parts = [
        chunk if kept[start : start + len(chunk)].all() else chunk.filter(pa.array(kept[start : start + len(chunk)]))
        for chunk, start in zip(chunks, starts, strict=False)
    ]
    return pa.chunked_array(parts, kind)


def _dictionary(codes: Codes, words: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int32(), mask=codes < 0), pa.array(list(words), pa.large_string())
    )


def _valid(values: pa.Array) -> npt.NDArray[np.bool_]:
    valid: npt.NDArray[np.bool_] = values.is_valid().to_numpy(zero_copy_only=False)
    return valid
