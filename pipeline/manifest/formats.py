"""Which convention a collection follows, and the URIs of its annotations and class list."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline.manifest.class_names import parse_class_names
from pipeline.manifest.errors import ManifestError
from pipeline.manifest.image_readers import TRUTHS, read_inaturalist, read_places365
from pipeline.manifest.packed import holds_pictures, read_huggingface, read_webdataset
from pipeline.manifest.readers import (
    PATH_COLUMNS,
    Annotations,
    read_hmdb51,
    read_kinetics,
    read_list,
    read_something,
    read_table,
    read_ucf101,
)
from pipeline.manifest.text_columns import first_line, malformed_named
from pipeline.media import Media
from pipeline.storage.files import absolute, exists, join, list_files, read_text

Convention = Literal[
    "auto",
    "folder",
    "bare",
    "csv",
    "parquet",
    "kinetics",
    "ssv2",
    "ucf101",
    "hmdb51",
    "list",
    "inventory",
    "imagenet",
    "inaturalist",
    "places365",
    "webdataset",
    "huggingface",
]

CLASS_LISTS = Path(__file__).parent / "class_lists"
LIST_SUFFIXES = (".csv", ".parquet", ".txt")
_FOUND_BY_ITSELF = ("annotations.csv", "annotations.parquet")


@dataclass(frozen=True)
class ManifestConfig:
    """How annotations are read."""

    media: Media = "video"
    """What the source holds: videos, or images. An image is a clip of one frame, stored as its original bytes."""
    annotations: str | None = None
    """Annotation file or folder. Default: `annotations.csv` or `.parquet` in the source when there is one."""
    convention: Convention = "auto"
    """Convention of the annotations; `auto` detects it by the names and the first line. `folder`: class folders;
    `webdataset`: tar files; `huggingface`: Parquet files with the pictures inside."""
    classes: str | None = None
    """The full class list, in the order of the indices: a text file (a name a line), JSON (a list, or an object of
    names and indices), a CSV, or a name that ships with the project (kinetics400). Default: the list that the
    convention has, else all labels, sorted, numbers by their value."""
    split_number: int = 1
    """Number of the official split (UCF101, HMDB51: 1, 2, 3)."""
    val_share: float = 0.1
    """Share of each class's source videos that becomes `val` where the annotations name no split."""
    unlisted: bool | None = None
    """Whether videos in the source that the annotations do not name are taken, without a label. Default: yes when
    the annotations are the source's own `annotations.csv` or `.parquet`."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share={self.val_share}: must be in [0, 1); 0 makes no `val` split")
        if self.split_number not in (1, 2, 3):
            raise ValueError(f"split_number={self.split_number}: must be an official split: 1, 2 or 3; use 1")


def is_list(source: str) -> bool:
    """Whether a source is a file that lists videos, and no folder of videos, by its name."""
    return source.lower().endswith(LIST_SUFFIXES)


def locate(source: str, config: ManifestConfig) -> tuple[str, ManifestConfig]:
    """The root folder of the videos, and the configuration with the URI of the annotations filled in."""
    if (is_list(source) or source.lower().endswith(".tar")) and config.annotations is None:
        annotations: str | None = source
        source = source.rpartition("/")[0]
    elif config.annotations is not None:
        annotations = absolute(config.annotations)
    else:
        wanted = config.convention in ("auto", "csv", "parquet")
        found = [join(source, name) for name in _FOUND_BY_ITSELF if wanted and exists(join(source, name))]
        annotations = found[0] if found else None
    in_source = annotations in [join(source, name) for name in _FOUND_BY_ITSELF]
    unlisted = in_source if config.unlisted is None else config.unlisted
    return source, dataclasses.replace(config, annotations=annotations, unlisted=unlisted)


def detect(root: str, annotations: str | None) -> Convention:
    if annotations is None:
        return "folder"
    name = annotations.rpartition("/")[2].lower()
    if name in map(str.lower, TRUTHS):
        return "imagenet"
    if name.endswith(".tar"):
        return "webdataset"
    if name.endswith(".parquet"):
        return "huggingface" if holds_pictures(annotations) else "parquet"
    if name.endswith(".json"):
        content = read_text(annotations)
        if "fileSchema" in content:
            return "inventory"
        return "inaturalist" if '"images"' in content and '"categories"' in content else "ssv2"
    if name.endswith((".csv", ".txt")):
        return _detect_table(annotations)
    return _detect_folder(annotations)


def _detect_table(uri: str) -> Convention:
    """By the first line: Kinetics has a youtube_id, a manifest a header with a path, a list has neither."""
    header = first_line(uri).lower()
    columns = {name.strip().strip('"') for name in header.split(",")}
    if "youtube_id" in columns:
        return "kinetics"
    return "csv" if columns & set(PATH_COLUMNS) else "list"


def _detect_folder(folder: str) -> Convention:
    files = list_files(folder, recursive=False)["uri"].to_pylist()
    names = [file.rpartition("/")[2].lower() for file in files]
    if "categories_places365.txt" in names:
        return "places365"
    if any(re.fullmatch(r"(train|val)\d{4}\.json", name) for name in names):
        return "inaturalist"
    if "classind.txt" in names:
        return "ucf101"
    if any("_test_split" in name for name in names):
        return "hmdb51"
    if any(name.endswith("labels.json") for name in names):
        return "ssv2"
    tables = [file for file in files if file.lower().endswith((".csv", ".txt"))]
    if not tables:
        raise ManifestError(f"annotations={folder}: contains no annotation file of a known convention; set convention=")
    return _detect_table(tables[0])


def read_annotations(convention: str, config: ManifestConfig, root: str) -> Annotations:
    uri = config.annotations
    if convention == "webdataset":
        return read_webdataset(uri or root, config.media)
    if convention == "huggingface":
        return read_huggingface(uri or root)
    if uri is None:
        raise ManifestError(f"annotations: missing, convention={convention} reads them; give annotations=FILE")
    if convention == "ucf101":
        return read_ucf101(uri, config.split_number)
    if convention == "hmdb51":
        return read_hmdb51(uri, config.split_number)
    if convention == "places365":
        return read_places365(root, uri)
    readers = {
        "csv": read_table,
        "parquet": read_table,
        "kinetics": read_kinetics,
        "ssv2": read_something,
        "list": read_list,
        "inaturalist": read_inaturalist,
    }
    return readers[convention](uri)


def read_class_list(name_or_uri: str) -> tuple[str, ...]:
    """A class list by its shipped name, or from a file in one of the forms of `class_names`.

    Raises:
        ManifestError: it is empty, of another form, or names a class twice.
        StorageError: it cannot be read, or is no text.
    """
    shipped = CLASS_LISTS / f"{name_or_uri}.txt"
    content = read_text(str(shipped) if shipped.exists() else name_or_uri)
    with malformed_named(f"classes={name_or_uri}"):
        names = parse_class_names(content, PurePosixPath(name_or_uri.lower()).suffix)
    if not names or len(set(names)) != len(names):
        raise ManifestError(f"classes={name_or_uri}: is empty or names a class twice; give each name once, one a line")
    return tuple(names)
