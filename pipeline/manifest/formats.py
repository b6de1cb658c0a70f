"""Which convention a collection follows, and where its annotations and class list are."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.manifest.readers import (
    Annotations,
    read_hmdb51,
    read_kinetics,
    read_list,
    read_something,
    read_table,
    read_ucf101,
)
from pipeline.manifest.text_columns import ManifestError, malformed_named
from pipeline.storage.files import absolute, exists, join, list_files, read_bytes
from pipeline.storage.parquet import read_by_arrow

Convention = Literal[
    "auto", "folder", "bare", "csv", "parquet", "kinetics", "ssv2", "ucf101", "hmdb51", "list", "inventory"
]

CLASS_LISTS = Path(__file__).parent / "class_lists"
_FOUND_BY_ITSELF = ("annotations.csv", "annotations.parquet")


@dataclass(frozen=True)
class ManifestConfig:
    """How annotations are read."""

    annotations: str | None = None
    """Annotation file or folder. Default: `annotations.csv` or `.parquet` in the source when there is one."""
    convention: Convention = "auto"
    """What the annotations follow; `auto` looks at the names and the first line. `folder`: class folders."""
    classes: str | None = None
    """The full class list, in the order of the indices: a text file (a name a line), a JSON list, or a name that
    ships with the project (kinetics400). Default: the list that the convention has, else all labels, sorted."""
    split_number: int = 1
    """Which of the official splits (UCF101, HMDB51: 1, 2, 3)."""
    val_share: float = 0.1
    """Share of each class's source videos held out as `val` where the annotations name no split."""
    unlisted: bool | None = None
    """Whether videos in the source that the annotations do not name are taken, without a label. Default: yes when
    the annotations are the source's own `annotations.csv` or `.parquet`."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share={self.val_share}: must be in [0, 1); 0 holds nothing out")
        if self.split_number not in (1, 2, 3):
            raise ValueError(f"split_number={self.split_number}: the official splits are 1, 2 and 3")


def locate(source: str, config: ManifestConfig) -> tuple[str, ManifestConfig]:
    """The root folder of the videos, and the configuration with the place of the annotations filled in."""
    if source.lower().endswith((".csv", ".parquet", ".txt")) and config.annotations is None:
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
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(".json"):
        return "inventory" if b"fileSchema" in read_bytes(annotations) else "ssv2"
    if name.endswith((".csv", ".txt")):
        return _detect_table(annotations)
    return _detect_folder(annotations)


def _detect_table(uri: str) -> Convention:
    """By the first line: Kinetics has a youtube_id, a manifest a header with a path, a list has neither."""
    head = read_by_arrow(uri, lambda files, path: files.open_input_stream(path).read(65536), "check annotations=")
    first_line = head.split(b"\n")[0].decode("utf-8-sig", errors="replace").lower()
    columns = {name.strip().strip('"') for name in first_line.split(",")}
    if "youtube_id" in columns:
        return "kinetics"
    return "csv" if columns & {"path", "uri", "video", "video_path", "filename", "file"} else "list"


def _detect_folder(folder: str) -> Convention:
    files = list_files(folder, recursive=False)["uri"].to_pylist()
    names = [file.rpartition("/")[2].lower() for file in files]
    if "classind.txt" in names:
        return "ucf101"
    if any("_test_split" in name for name in names):
        return "hmdb51"
    if any(name.endswith("labels.json") for name in names):
        return "ssv2"
    tables = [file for file in files if file.lower().endswith((".csv", ".txt"))]
    if not tables:
        raise ManifestError(f"annotations={folder}: holds no annotation file of a known convention; set convention=")
    return _detect_table(tables[0])


def read_annotations(convention: str, config: ManifestConfig) -> Annotations:
    place = config.annotations
    if place is None:
        raise ManifestError(f"annotations: convention={convention} needs them; give annotations=PLACE")
    if convention == "ucf101":
        return read_ucf101(place, config.split_number)
    if convention == "hmdb51":
        return read_hmdb51(place, config.split_number)
    readers = {
        "csv": read_table,
        "parquet": read_table,
        "kinetics": read_kinetics,
        "ssv2": read_something,
        "list": read_list,
    }
    return readers[convention](place)


def read_class_list(place: str) -> tuple[str, ...]:
    """A class list by its shipped name, from a text file (a name a line) or a JSON list.

    Raises:
        ManifestError: it is empty, no text in UTF-8 or no JSON list, or names a class twice.
    """
    shipped = CLASS_LISTS / f"{place}.txt"
    content = shipped.read_bytes() if shipped.exists() else read_bytes(place)
    with malformed_named(f"classes={place}"):
        text = content.decode()
        names = json.loads(text) if place.endswith(".json") else [line.strip() for line in text.splitlines()]
        names = [str(name) for name in names if name]
    if not names or len(set(names)) != len(names):
        raise ManifestError(f"classes={place}: is empty or names a class twice; give one name a line, each once")
    return tuple(names)
