"""The field's annotation files, one reader per convention, all to one table of rows (`ANNOTATION_SCHEMA`).

Every reader works on whole columns (Arrow kernels); nothing runs once per row in Python, because lists of ten
million videos are read here. Conventions are described in their own words below; what they leave out stays null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.text_columns import (
    as_text,
    csv_batches,
    empty_to_null,
    extract,
    joined,
    line_batches,
    malformed_named,
    parquet_batches,
    read_csv,
    read_lines,
)
from pipeline.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from pipeline.storage.files import join, list_files, read_text
from pipeline.storage.records import parse_json

ANNOTATION_SCHEMA = pa.schema(
    [
        pa.field("path", pa.large_string()),
        pa.field("stem", pa.large_string()),
        pa.field("bare_id", pa.large_string()),
        pa.field("label", pa.large_string()),
        pa.field("split", pa.large_string()),
        pa.field("source_video", pa.large_string()),
    ]
)

"""One annotated video. ``path``: relative to the source, absolute, or a URI; null where the convention gives an id
alone (then ``stem`` is the file's name without suffix, and ``bare_id`` what some copies are named instead).
``source_video``: clips of one source video share it, so that a split never separates them."""

PATH_COLUMNS = ("uri", "path", "video", "video_path", "image", "image_path", "filename", "file")
_LABEL_COLUMNS = ("label", "class", "class_name", "action")
_SPLIT_COLUMNS = ("split", "subset", "set")
_SOURCE_COLUMNS = ("source_video", "group", "youtube_id")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SUFFIX_PATTERN = "|".join(re.escape(suffix[1:]) for suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Annotations:
    """The content of annotation files."""

    batches: Iterable[pa.Table]
    """Tables of `ANNOTATION_SCHEMA`, to be taken once: a list of ten million videos is never in memory as text."""
    classes: tuple[str, ...] | None = None
    """The convention's full class list in its own order; None when it has none besides the labels themselves."""
    digits_are_indices: bool = False
    """Labels that are all whole numbers are class indices; negative ones mean "no label", beside names too."""
    unused: frozenset[str] = field(default_factory=frozenset)
    """Values of ``split`` that mean "not used in this split"."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names for people of classes that are called otherwise: wnid → words."""


def read_table(uri: str) -> Annotations:
    """A CSV or Parquet manifest with a column for the path, and optionally label, split and source video."""
    batches = parquet_batches(uri) if uri.lower().endswith(".parquet") else csv_batches(uri)
    return Annotations((_table_rows(uri, batch) for batch in batches), digits_are_indices=True)


def read_kinetics(uri: str) -> Annotations:
    """Kinetics-400/600/700 official CSV: label, youtube_id, time_start, time_end, split; one file or a folder of them.

    Files are named ``{youtube_id}_{start:06d}_{end:06d}`` or just ``{youtube_id}``, in class folders or not.
    """
    return Annotations(_kinetics_rows(file, read_csv(file)) for file in _files(uri, (".csv",)))


def read_something(uri: str) -> Annotations:
    """Something-Something v2: a folder with the JSON files of labels, train, validation and test (any prefix)."""
    files = {_something_part(file): file for file in _files(uri, (".json",))}
    if "labels" not in files:
        raise ManifestError(f"{uri}: has no labels.json, the full class list; add it")
    with malformed_named(files["labels"]):
        indices = parse_json(read_text(files["labels"]))
        classes = tuple(sorted(indices, key=lambda name: int(indices[name])))
    parts = [
        _something_rows(files[part], split)
        for part, split in (("train", "train"), ("validation", "val"), ("test", "test"))
        if part in files
    ]
    if not parts:
        raise ManifestError(f"{uri}: has none of train.json, validation.json, test.json; add one")
    return Annotations(parts, classes)


def read_ucf101(uri: str, split_number: int) -> Annotations:
    """UCF101: ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt`` in one folder."""
    names = extract(read_lines(join(uri, "classInd.txt")), r"^(?P<index>\d+)\s+(?P<name>\S+)\s*$")
    order = pc.sort_indices(pc.cast(names["index"], pa.int64()))
    classes = tuple(pc.take(names["name"], order).to_pylist())
    parts = []
    for kind in ("train", "test"):
        listed = extract(
            read_lines(join(uri, f"{kind}list{split_number:02d}.txt")),
            r"^(?P<path>(?P<label>[^/]+)/.+?)(?:\s+\d+)?\s*$",
        )
        source = extract(listed["path"], r"(?P<source>v_\w+_g\d+)_c\d+")["source"]
        parts.append(annotation_table(path=listed["path"], label=listed["label"], split=kind, source_video=source))
    return Annotations(parts, classes)


def read_hmdb51(uri: str, split_number: int) -> Annotations:
    """HMDB51: ``{class}_test_split{N}.txt`` per class, lines ``name flag``; flag 1 train, 2 test, 0 unused."""
    ending = f"_test_split{split_number}.txt"
    files = [file for file in list_files(uri, (".txt",))["uri"].to_pylist() if file.endswith(ending)]
    if not files:
        raise ManifestError(f"{uri}: has no files named CLASS{ending}; check split_number={split_number}")
    parts = [_hmdb51_rows(file, PurePosixPath(file).name.removesuffix(ending)) for file in files]
    classes = tuple(sorted(PurePosixPath(file).name.removesuffix(ending) for file in files))
    return Annotations(parts, classes, unused=frozenset({"unused"}))


def read_list(uri: str) -> Annotations:
    """SlowFast and VideoMAE lists: ``path label`` by space or comma, or ``path start total label``; no header.

    The path runs up to a video suffix, so it may hold spaces. One file, or a folder with train, val and test.
    """
    files = _files(uri, (".csv", ".txt"))
    batches = (_list_rows(file, lines) for file in files for lines in line_batches(file))
    return Annotations(batches, digits_are_indices=True)


def file_stem(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names without folder and suffix."""
    return extract(paths, r"(?P<stem>[^/]+?)(?:\.[^./]*)?$")["stem"]


def source_video_of(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """The source video by the file's name, of Kinetics clips and UCF101 clips; null otherwise."""
    named = pc.match_substring_regex(paths, r"_(\d{6}_\d{6}|c\d+)\.\w+$")
    if not pc.any(named).as_py():
        return pa.chunked_array([pa.nulls(len(paths), pa.large_string())])
    found = extract(file_stem(paths), r"^(?:(?P<kinetics>.+)_\d{6}_\d{6}|(?P<ucf101>v_\w+_g\d+)_c\d+)$")
    return pc.coalesce(empty_to_null(found["kinetics"]), empty_to_null(found["ucf101"]))


def _table_rows(uri: str, table: pa.Table) -> pa.Table:
    path = _column(table, PATH_COLUMNS)
    if path is None:
        raise ManifestError(
            f"{uri}: has no column {' or '.join(PATH_COLUMNS[:3])} among {table.column_names[:12]}; rename one"
        )
    rows = annotation_table(
        path=path,
        label=empty_to_null(_column(table, _LABEL_COLUMNS)),
        split=_split_names(_column(table, _SPLIT_COLUMNS)),
        source_video=empty_to_null(_column(table, _SOURCE_COLUMNS)),
    )
    return rows.filter(pc.is_valid(rows["path"])) if path.null_count else rows


def _kinetics_rows(uri: str, table: pa.Table) -> pa.Table:
    missing = {"youtube_id", "time_start", "time_end"} - set(table.column_names)
    if missing:
        raise ManifestError(f"{uri}: has no column {', '.join(sorted(missing))}; give the official Kinetics CSV")
    times = [_zero_padded(table[name]) for name in ("time_start", "time_end")]
    split = _split_names(_column(table, _SPLIT_COLUMNS))
    return annotation_table(
        stem=joined("_", table["youtube_id"], *times),
        bare_id=table["youtube_id"],
        label=empty_to_null(_column(table, ("label",))),
        split=split_of_file(uri) if split is None else split,
        source_video=table["youtube_id"],
    )


def _zero_padded(seconds: pa.ChunkedArray) -> pa.ChunkedArray:
    whole = pc.cast(pc.cast(as_text(seconds), pa.float64()), pa.int64())
    return as_text(pc.utf8_lpad(pc.cast(whole, pa.string()), 6, "0"))


def _something_part(uri: str) -> str:
    name = PurePosixPath(uri).stem.lower()
    return next((part for part in ("labels", "train", "validation", "test") if name.endswith(part)), name)


def _something_rows(uri: str, split: str) -> pa.Table:
    # The files are JSON arrays, which Arrow cannot stream; json parses 170,000 entries in a second.
    with malformed_named(uri):
        schema = pa.schema([("id", pa.string()), ("template", pa.string())])
        table = pa.Table.from_pylist(parse_json(read_text(uri)), schema)
    label = pc.replace_substring_regex(table["template"], r"[\[\]]", "")
    return annotation_table(stem=table["id"], label=label, split=split, source_video=table["id"])


def _hmdb51_rows(uri: str, label: str) -> pa.Table:
    listed = extract(read_lines(uri), r"^(?P<name>.+?)\s+(?P<flag>[012])\s*$")
    # {film}_{class}_{body part}_{camera}_..._{number}.avi: all clips of a film share its people and scenes.
    source = extract(listed["name"], rf"^(?P<source>.+)_{re.escape(label)}_.+_\d+\.\w+$")["source"]
    used = pc.if_else(pc.equal(listed["flag"], "1"), "train", "test")
    split = pc.if_else(pc.equal(listed["flag"], "0"), "unused", used)
    path = joined("/", label, listed["name"])
    return annotation_table(path=path, label=label, split=split, source_video=source)


def _list_rows(uri: str, lines: pa.ChunkedArray) -> pa.Table:
    path = rf"(?P<path>.+?\.(?i:{_SUFFIX_PATTERN}))"
    start_and_total = r"(?:[ ,\t]+-?\d+){0,2}?"
    listed = extract(lines, rf"^{path}{start_and_total}(?:[ ,\t]+(?P<label>[^ ,\t]+))?\s*$")
    unread = pc.is_null(listed["path"])
    if pc.any(unread).as_py():
        line = lines.filter(unread)[0].as_py()
        raise ManifestError(f"{uri}: the line {line[:120]!r} is no `path label`; give a list of video files and labels")
    return annotation_table(path=listed["path"], label=empty_to_null(listed["label"]), split=split_of_file(uri))


def _files(uri: str, suffixes: Sequence[str]) -> list[str]:
    """The file itself, or the files of a folder that are named after train, val or test (or labels)."""
    if uri.lower().endswith(tuple(suffixes)):
        return [uri]
    listed: list[str] = list_files(uri, suffixes, recursive=False)["uri"].to_pylist()
    known = [file for file in listed if split_of_file(file) or _something_part(file) == "labels"]
    if not known:
        raise ManifestError(f"{uri}: contains no annotation file named after train, val or test; name the file itself")
    return known


def split_of_file(uri: str) -> str | None:
    """The split that a file's name says: `train2018.json`, `ssv2-validation.json`."""
    words = re.split(r"[^a-z]+", PurePosixPath(uri).stem.lower())
    return next((_SPLIT_NAMES[word] for word in reversed(words) if word in _SPLIT_NAMES), None)


def annotation_table(**columns: Any) -> pa.Table:
    """Columns (Arrow, one text for all rows, or None) as a table of `ANNOTATION_SCHEMA`."""
    length = next(len(column) for column in columns.values() if isinstance(column, pa.Array | pa.ChunkedArray))
    arrays = []
    for name in ANNOTATION_SCHEMA.names:
        value = columns.get(name)
        if value is None or isinstance(value, str):
            value = pa.repeat(pa.scalar(value, pa.large_string()), length)
        arrays.append(as_text(value))
    return pa.Table.from_arrays(arrays, schema=ANNOTATION_SCHEMA)


def _column(table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray | None:
    lowered = {name.strip().lower(): name for name in table.column_names}
    return next((as_text(table[lowered[name]]) for name in names if name in lowered), None)


def _split_names(values: pa.ChunkedArray | None) -> pa.ChunkedArray | None:
    """The field's spellings of train, val and test → ours; others stay as they are."""
    if values is None:
        return None
    lowered = pc.utf8_lower(empty_to_null(values))
    names = pa.array(list(_SPLIT_NAMES), lowered.type)
    ours = pa.array(list(_SPLIT_NAMES.values()), lowered.type)
    return pc.coalesce(pc.take(ours, pc.index_in(lowered, names)), lowered)
