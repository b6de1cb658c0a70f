"""From a source and its annotations to one manifest: the videos to prepare, with label and split, and the rejected."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import Digests, first_occurrences, name_digests, seeded
from pipeline.manifest.formats import ManifestConfig, detect, locate, read_annotations, read_class_list
from pipeline.manifest.leftovers import videos_of
from pipeline.manifest.readers import Annotations, annotation_table, file_stem, source_video_of
from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.splits import SPLITS, Codes, assign_splits
from pipeline.manifest.text_columns import malformed_named
from pipeline.schema import REJECTED_SCHEMA
from pipeline.storage.files import (
    LISTING_SCHEMA,
    absolute,
    content_versions,
    is_local,
    listed_in_parts,
    local_path,
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

# Spreadsheets write an index as 3.0 where another row of the column is empty. 007 is a name.
_INDEX = re.compile(r"(0|[1-9]\d*)(?:\.0+)?")
_NEGATIVE = re.compile(r"-\d+(?:\.0+)?")
_NUMBER = re.compile(r"-?\d{1,18}")
_LARGEST_INDEX = 100_000  # beyond, a number is an id, and a class for every smaller one would mean nothing
_LISTED = ("folder", "bare", "inventory", "kinetics", "ssv2")
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
    ambiguous: dict[str, str]
    """Names in the annotations that fit several files in another form: name → message with these files."""


class _Checked(NamedTuple):
    """One reason to reject rows."""

    reason: str
    out: npt.NDArray[np.bool_]
    message: str


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
    return Manifest(table, rejected, classes, opened.convention, opened.skipped)


def read_uris(source: str) -> Iterator[pa.Table]:
    """The videos that `read_manifest` finds by a list, for readers that need neither label nor split.

    Tables of ``uri`` and ``content_version`` (null where the source was not listed). Videos that the source does not
    hold are included with the URI that they would have; a video that is listed twice comes twice.

    Raises:
        ManifestError: a list that does not follow its convention.
        StorageError: a file or folder that cannot be read.
    """
    opened = _open(source, ManifestConfig())
    rows = _gathered(opened)
    for uris, names, versions in zip(rows.uris, rows.names, rows.versions, strict=True):
        expected = _absolute_paths(opened.root, pa.chunked_array([pc.cast(names, pa.large_string())]))
        yield pa.table({"uri": pc.coalesce(uris, _combined(expected)), "content_version": versions})


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
    listing, skipped = _listing(root, inventory) if needs_listing else (None, {})
    if convention in ("folder", "bare", "inventory"):
        assert listing is not None
        annotations = _from_folders(root, listing, convention, asked=config.convention == "folder")
    else:
        with malformed_named(config.annotations):
            annotations = read_annotations(convention, config)
        annotations = replace(annotations, batches=_errors_named(annotations.batches, config.annotations))
    return _Opened(root, config, convention, annotations, listing, skipped)


def shuffled_order(rows: pa.Table, seed: int) -> npt.NDArray[np.int64]:
    """The seeded global order of a manifest's rows: by a digest of each URI, so it does not depend on the listing."""
    return np.argsort(seeded(name_digests(rows["uri"]), seed, "order"), kind="stable")


def _listing(root: str, inventory: str | None) -> tuple[pa.Table, Mapping[str, int]]:
    """The videos below a root, and the kinds of other files; read a part at a time, as a prefix may hold millions."""
    prefix = root.rstrip("/") + "/"
    wanted = prefix if inventory is not None and not is_local(root) else ""
    videos: list[pa.Table] = []
    skipped: Counter[str] = Counter()
    with malformed_named(inventory or root):
        for part in listed_in_parts(root) if inventory is None else inventory_parts(inventory):
            listed = part.filter(pc.starts_with(part["uri"], wanted))
            videos.append(videos_of(listed, prefix, skipped))
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
    rows = _Rows([], [], [], [], [], [], [], [], {})
    index = None if opened.listing is None else _ListingIndex(opened.listing)
    for batch in opened.annotations.batches:
        _add(rows, batch, _absolute_paths(opened.root, batch["path"]), index)
    if opened.config.unlisted and index is not None:
        others = index.not_among(np.concatenate([np.empty(0, np.uint64), *rows.uri_digests]))
        _add(rows, annotation_table(path=others), others, index)
    return rows


class _RowIndex:
    """The row of each of N texts; made once, for any number of batches (`index_in` would hash all N for each)."""

    def __init__(self, texts: pa.ChunkedArray | pa.Array) -> None:
        digests = name_digests(pc.fill_null(texts, ""))
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def rows(self, wanted: pa.ChunkedArray | pa.Array) -> pa.Array:
        """The first row that holds each text, null where none does. [wanted]"""
        if not len(self._digests):
            return pa.nulls(len(wanted), pa.int64())
        digests = name_digests(pc.fill_null(wanted, ""))
        nearest = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        absent = (self._digests[nearest] != digests) | np.asarray(wanted.is_null())
        return pa.array(self._order[nearest], pa.int64(), mask=absent)


class _ListingIndex:
    """What a listing knows of each file, found by URI or by the file's name."""

    def __init__(self, listing: pa.Table) -> None:
        self.uris = pc.cast(listing["uri"], pa.large_string()).combine_chunks()
        self.versions = content_versions(listing).combine_chunks()
        self.sizes = listing["size"].combine_chunks()

    def rows_of(self, paths: pa.ChunkedArray, ambiguous: dict[str, str]) -> pa.Array:
        """By URI, else by another form of it (case, Unicode) that one file alone has; null where there is none.

        Args:
            ambiguous: gets a message for each path of which several files are a form.
        """
        found = self._by_uri.rows(paths)
        if found.null_count == paths.null_count:
            return found
        forms = _form(paths)
        loose = self._by_form.rows(forms).filter(pc.is_null(found))
        unsure = self._shared_forms & set(forms.filter(pc.is_null(found)).to_pylist())
        if unsure:
            several = pc.is_in(forms, pa.array(sorted(unsure), forms.type))
            for path, form in zip(paths.filter(several).to_pylist(), forms.filter(several).to_pylist(), strict=True):
                same = self.uris.filter(pc.equal(_form(self.uris), form)).to_pylist()
                ambiguous[path] = f"several files are forms of this path: {', '.join(same[:4])}; rename all but one"
            loose = pc.if_else(_combined(several).filter(pc.is_null(found)), pa.scalar(None, loose.type), loose)
        return pc.replace_with_mask(found, pc.is_null(found), loose)

    @functools.cached_property
    def _by_form(self) -> _RowIndex:
        return _RowIndex(_form(self.uris))

    @functools.cached_property
    def _shared_forms(self) -> set[str]:
        counts = pc.value_counts(_form(self.uris))
        return set(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())

    def rows_of_names(self, batch: pa.Table) -> pa.Array:
        """By ``{id}_{start}_{end}``, else by the bare id, in whatever folder the file lies."""
        return pc.coalesce(self._by_stem.rows(batch["stem"]), self._by_stem.rows(batch["bare_id"]))

    @functools.cached_property
    def _by_uri(self) -> _RowIndex:
        return _RowIndex(self.uris)

    @functools.cached_property
    def _by_stem(self) -> _RowIndex:
        return _RowIndex(file_stem(self.uris))

    def not_among(self, digests: Digests) -> pa.Array:
        return self.uris.filter(pa.array(~np.isin(name_digests(self.uris), digests)))


def _add(rows: _Rows, batch: pa.Table, paths: Any, index: _ListingIndex | None) -> None:
    if index is None:
        uris = _combined(paths)
        versions, sizes = _nulls(len(batch), pa.string()), _nulls(len(batch), pa.int64())
    else:
        by_name = batch["path"].null_count == len(batch) > 0
        unsure: dict[str, str] = {}
        found = index.rows_of_names(batch) if by_name else index.rows_of(paths, unsure)
        if unsure:
            written = dict(zip(paths.to_pylist(), batch["path"].to_pylist(), strict=True))
            rows.ambiguous.update({written[path]: message for path, message in unsure.items()})
        uris = pc.take(index.uris, found)
        versions, sizes = pc.take(index.versions, found), pc.take(index.sizes, found)
    source = pc.coalesce(batch["source_video"], source_video_of(uris))
    uri_digests = name_digests(pc.fill_null(uris, ""))
    is_file = source.is_null().to_numpy()
    rows.uris.append(uris)
    rows.names.append(_combined(_missing_names(batch, uris)))
    rows.labels.append(_combined(batch["label"]).dictionary_encode())
    rows.splits.append(_combined(batch["split"]).dictionary_encode())
    rows.versions.append(versions)
    rows.sizes.append(sizes)
    rows.uri_digests.append(uri_digests)
    rows.source_digests.append(np.where(is_file, uri_digests, name_digests(pc.fill_null(source, ""))))


def _missing_names(batch: pa.Table, uris: pa.Array) -> pa.Array:
    """The names in the annotations of the videos that were not found; null for the others."""
    if uris.null_count == 0:
        return _nulls(len(uris), pa.string())
    names = pc.coalesce(batch["path"], batch["stem"])
    return pc.cast(pc.if_else(uris.is_null(), names, pa.scalar(None, names.type)), pa.string())


def _nulls(length: int, kind: pa.DataType) -> pa.Array:
    """Nulls that share one buffer with all others of their kind."""
    size = 1 << max(20, length.bit_length())
    return _shared_nulls(size, kind).slice(0, length)


@functools.lru_cache(maxsize=8)
def _shared_nulls(length: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(length, kind)


def _combined(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _form(paths: Any) -> Any:
    """What all forms of one path have in common: upper and lower case, composed and decomposed Unicode."""
    return pc.utf8_normalize(pc.utf8_lower(pc.utf8_normalize(_combined(paths), form="NFC")), form="NFC")


def _tidy(paths: pa.ChunkedArray, local: bool) -> pa.ChunkedArray:
    """Paths without blanks around them and without `./`; of local ones also without `..` and repeated slashes."""
    paths = pc.replace_substring_regex(pc.utf8_trim_whitespace(paths), r"^(?:\./+)+", "")
    untidy = pc.match_substring_regex(paths, r"//|/\.{1,2}/|^\.\./")
    untidy = pc.fill_null(pc.and_(untidy, pc.invert(pc.match_substring(paths, "://"))), False)
    if not local or not pc.any(untidy).as_py():
        return paths
    tidied = pa.array([os.path.normpath(path) for path in paths.filter(untidy).to_pylist()], paths.type)
    return pa.chunked_array([pc.replace_with_mask(_combined(paths), _combined(untidy), tidied)])


def _absolute_paths(root: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    paths = _tidy(_plain(paths), is_local(root))
    below = pc.binary_join_element_wise(
        pa.scalar(root.rstrip("/"), pa.large_string()), paths, pa.scalar("/", pa.large_string())
    )
    is_absolute = pc.fill_null(pc.match_substring_regex(paths, r"^/|^\w+://"), False)
    # `if_else` allocates memory for both choices of every row: most lists need only one of them.
    if not pc.any(is_absolute).as_py():
        return below
    return paths if pc.all(is_absolute).as_py() else pc.if_else(is_absolute, paths, below)


def _plain(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """``file://`` URIs as the paths that a listing gives; those of names that are no valid text stay URIs."""
    is_uri = pc.fill_null(pc.starts_with(paths, "file://"), False)
    if not pc.any(is_uri).as_py():
        return paths
    plain = pa.array([plain_uri(uri) for uri in paths.filter(is_uri).to_pylist()], paths.type)
    return pa.chunked_array([pc.replace_with_mask(_combined(paths), _combined(is_uri), plain)])


def placed_uri(source: str, path: str) -> str:
    """The URI of one annotated path, by the rule for lists: relative to the source, without blanks, `./` and `//`."""
    placed: str = _absolute_paths(plain_uri(absolute(source)), pa.chunked_array([pa.array([path], pa.large_string())]))[
        0
    ].as_py()
    return placed


def plain_uri(uri: str) -> str:
    """A ``file://`` URI as the path that a listing gives, unless the path is no valid text; others as they are."""
    if not uri.startswith("file://"):
        return uri
    path = str(local_path(uri))
    try:
        path.encode()
    except UnicodeEncodeError:
        return uri
    return path


def _finished(
    rows: _Rows, annotations: Annotations, config: ManifestConfig, seed: int, known_splits: pa.Table | None
) -> tuple[pa.Table, pa.Table, tuple[str, ...]]:
    """Divide the rows into those to prepare, with their split, and the rejected, with the reason."""
    labels, label_codes = _unified(rows.labels)
    labels, label_codes, classes = _classes(labels, label_codes, annotations, config.classes)
    splits, split_codes = _unified(rows.splits)
    uri_digests = np.concatenate([np.empty(0, np.uint64), *rows.uri_digests])
    rows.uri_digests.clear()
    is_file = np.concatenate([np.empty(0, np.bool_), *(_valid(uris) for uris in rows.uris)])
    checks = (
        _Checked("missing", ~is_file, "the annotations name it, but the source does not hold it"),
        _Checked("unknown_label", _outside(label_codes, labels, classes), "its label is not in the class list"),
        _Checked(
            "unused_in_split",
            ~_outside(split_codes, splits, annotations.unused, none=True),
            "the official split does not use it",
        ),
        _Checked("unknown_split", _outside(split_codes, splits, SPLITS), "its split is none of train, val, test"),
        _Checked("duplicate", ~first_occurrences(uri_digests), "an earlier row names the same video"),
    )
    kept, rejected = _sifted(rows, checks)
    rejected = _with_ambiguous(rejected, rows.ambiguous)
    given = _recoded(split_codes, splits, SPLITS)[kept]
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


def _unified(chunks: list[pa.Array]) -> tuple[list[str], Codes]:
    """Chunks with dictionaries of their own → one list of words and a code per row, -1 for null."""
    if not chunks:
        return [], np.empty(0, np.int32)
    joined = pa.chunked_array(chunks).unify_dictionaries()
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in joined.chunks]
    return joined.chunks[0].dictionary.to_pylist(), np.concatenate(codes).astype(np.int32)


def _classes(
    labels: list[str], codes: Codes, annotations: Annotations, class_list: str | None
) -> tuple[list[str], Codes, tuple[str, ...]]:
    """The labels as names, their codes, and the class list."""
    listed = read_class_list(class_list) if class_list is not None else annotations.classes
    labels, codes = _same_words([unicodedata.normalize("NFC", label).strip() for label in labels], codes)
    listed = None if listed is None else tuple(unicodedata.normalize("NFC", name) for name in listed)
    if annotations.digits_are_indices:
        negative = np.array([*(bool(_NEGATIVE.fullmatch(label)) for label in labels), False])
        codes = np.where(negative[codes], np.int32(-1), codes)
        indices = _indices([labels[code] for code in np.unique(codes[codes >= 0])], listed)
        if indices is not None:
            listed = listed or tuple(str(index) for index in range(max(indices.values(), default=-1) + 1))
            named = {label: listed[index] if index < len(listed) else str(index) for label, index in indices.items()}
            labels, codes = _same_words([named.get(label, label) for label in labels], codes)
    in_use = [labels[code] for code in np.unique(codes[codes >= 0])]
    return labels, codes, listed if listed is not None else tuple(sorted(in_use, key=_numbers_by_value(in_use)))


def _same_words(labels: list[str], codes: Codes) -> tuple[list[str], Codes]:
    """Each word once: forms of one label may have become equal."""
    words = list(dict.fromkeys(labels))
    place = {word: code for code, word in enumerate(words)}
    return words, np.array([*(place[label] for label in labels), -1], np.int32)[codes]


def _indices(labels: Sequence[str], listed: Sequence[str] | None) -> dict[str, int] | None:
    """The class index that each label is; None where labels are names.

    They are names if one is no whole number, if all stand in the class list, or if they are too large for indices.
    """
    numbers = {label: int(match[1]) for label in labels if (match := _INDEX.fullmatch(label))}
    if len(numbers) < len(labels) or (listed is not None and set(labels) <= set(listed)):
        return None
    return numbers if max(numbers.values(), default=0) <= _LARGEST_INDEX else None


def _numbers_by_value(words: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """The order of class names: 2 before 10 where all are numbers."""
    if all(_NUMBER.fullmatch(word) for word in words):
        return lambda word: (int(word), word)
    return lambda word: (0, word)


def _outside(codes: Codes, words: list[str], allowed: Collection[str], *, none: bool = False) -> npt.NDArray[np.bool_]:
    """Rows whose word is none of the allowed; rows without a word are outside only if ``none``."""
    outside = np.array([*(word not in allowed for word in words), none])
    return outside[codes]


def _recoded(codes: Codes, words: list[str], order: Sequence[str]) -> Codes:
    return np.array([*(order.index(word) if word in order else -1 for word in words), -1], np.int32)[codes]


def _known(digests: Digests, known: pa.Table | None) -> Codes:
    """The split of earlier versions for each row, -1 without one."""
    if known is None or not len(known):
        return np.full(len(digests), -1, np.int32)
    names = name_digests(known["uri"])
    order = np.argsort(names)
    splits = pc.index_in(known["split"], pa.array(SPLITS)).to_numpy()[order]
    nearest = np.minimum(np.searchsorted(names[order], digests), len(order) - 1)
    return np.where(names[order][nearest] == digests, splits[nearest], np.int32(-1))


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
            columns = [names, pa.repeat(check.reason, len(names)), pa.repeat(check.message, len(names))]
            rejected.append(pa.table(columns, names=REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA))
    return kept, pa.concat_tables([REJECTED_SCHEMA.empty_table(), *rejected])


def _with_ambiguous(rejected: pa.Table, ambiguous: Mapping[str, str]) -> pa.Table:
    """The missing ones that several files may be meant by, with the names of these."""
    if not ambiguous:
        return rejected
    rows = [
        {**row, "reason": "ambiguous", "message": ambiguous[row["uri"]]}
        if row["reason"] == "missing" and row["uri"] in ambiguous
        else row
        for row in rejected.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


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
