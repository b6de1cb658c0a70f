"""The annotation files of image collections: ImageNet's flat validation images, iNaturalist, Places365."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.readers import Annotations, annotation_table, split_of_file
from pipeline.manifest.text_columns import (
    extract,
    joined,
    malformed_named,
    read_csv,
    read_lines,
)
from pipeline.storage.files import exists, file_names, join, list_files, read_text
from pipeline.storage.records import parse_json

VAL_NAME = r"ILSVRC2012_val_\d{8}\.\w+$"
TRUTHS = (
    "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "imagenet_2012_validation_synset_labels.txt",
)  # fmt: skip
_NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
_WNID = re.compile(r"n\d{8}")
_PLACES = re.compile(r"places365_(train_standard|train_challenge|val|test)\.txt")
_PLACES_FOLDERS = {
    "train": ("data_large_standard", "data_256_standard", "data_large", "data_256"),
    "val": ("val_large", "val_256"),
    "test": ("test_large", "test_256"),
}


def read_imagenet(root: str, listing: pa.Table, annotations: str | None) -> Annotations:
    """ImageNet-1K as it is distributed: ``train/WNID/*``, and ``val`` in such folders or flat with a ground truth.

    The ground truth is a file with the wnid of each validation image in turn, or Kaggle's ``LOC_val_solution.csv``. The
    classes are the wnids, sorted; their names are kept beside where a list of them is (`_NAMES`).
    """
    folder = root if annotations is None else annotations
    if annotations is not None and PurePosixPath(annotations).suffix:
        folder = annotations.rpartition("/")[0]
        truth: str | None = annotations
    else:
        truth = next((join(folder, name) for name in TRUTHS if exists(join(folder, name))), None)
    uris = listing["uri"]
    wnid = extract(uris, r"/(?P<wnid>n\d{8})/[^/]+$")["wnid"]
    flat = extract(uris, r"ILSVRC2012_(?P<part>val|test)_(?P<number>\d{8})\.\w+$")
    split = pc.coalesce(extract(uris, r"/(?P<split>train|val|test)/")["split"], flat["part"])
    wnids = _wnid_of_number(truth) if truth else pa.array([], pa.large_string())
    numbers = pc.subtract(pc.cast(flat["number"], pa.int64()), 1)
    is_flat = pc.and_(pc.equal(pc.fill_null(split, ""), "val"), pc.is_null(wnid))
    if pc.any(is_flat).as_py() and not len(wnids):
        raise ManifestError(
            f"source={root}: has flat validation images without labels; give annotations= a file with the wnid of each "
            f"in turn, or Kaggle's {TRUTHS[0]}"
        )
    beyond = pc.or_(pc.is_null(numbers), pc.greater_equal(pc.fill_null(numbers, 0), len(wnids)))
    by_number = pc.take(wnids, pc.if_else(pc.or_(beyond, pc.invert(is_flat)), None, numbers))
    label = pc.coalesce(wnid, by_number)
    classes = sorted({*pc.unique(label).drop_null().to_pylist(), *pc.unique(wnids).to_pylist()})
    rows = annotation_table(path=listing["uri"], label=label, split=split)
    return Annotations([rows], tuple(classes), names=_names_beside(folder))


def read_inaturalist(uri: str) -> Annotations:
    """iNaturalist 2017, 2018, 2019: a JSON file in COCO's form, or a folder with those of train, val and test.

    A class's index is the rank of its category's id.
    """
    files = [uri] if uri.lower().endswith(".json") else list_files(uri, (".json",), recursive=False)["uri"].to_pylist()
    parts: list[pa.Table] = []
    categories: dict[int, Mapping[str, Any]] = {}
    for file in files:
        with malformed_named(file):
            content = parse_json(read_text(file))
            if "images" in content:
                categories |= {entry["id"]: entry for entry in content.get("categories", ())}
                parts.append(_coco_rows(file, content))
    if not parts:
        raise ManifestError(f"{uri}: holds no JSON file with `images`; give the set's train and val files")
    with malformed_named(uri):
        names = _category_names(categories)
        order = {str(number): name for number, name in names.items()}
        labelled = [_renamed(part, order) for part in parts]
    return Annotations(labelled, tuple(order.values()) or None)


def read_places365(root: str, uri: str) -> Annotations:
    """Places365-Standard: its lists of ``path index`` in a folder, with ``categories_places365.txt`` beside them."""
    folder = uri.rpartition("/")[0] if uri.lower().endswith(".txt") else uri
    wanted = PurePosixPath(uri).name if folder != uri else ""
    lists = [wanted] if wanted else [name for name in file_names(folder, ".txt") if _PLACES.fullmatch(name)]
    if not lists:
        raise ManifestError(f"{uri}: holds no places365_train_standard.txt or places365_val.txt; give their folder")
    listed = extract(read_lines(join(folder, "categories_places365.txt")), r"^/\w/(?P<name>\S+)\s+(?P<index>\d+)\s*$")
    order = pc.sort_indices(pc.cast(listed["index"], pa.int64()))
    classes = tuple(pc.take(listed["name"], order).to_pylist())
    return Annotations([_places_rows(root, join(folder, name)) for name in lists], classes, digits_are_indices=True)


def _given(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)


def _wnid_of_number(uri: str) -> pa.Array:
    """The wnid of each validation image, in their order."""
    if uri.lower().endswith(".csv"):
        table = read_csv(uri)
        with malformed_named(uri):
            table = table.take(pc.sort_indices(table["ImageId"]))
            return extract(table["PredictionString"], r"^(?P<wnid>n\d{8})\s")["wnid"].combine_chunks()
    lines = pc.utf8_trim_whitespace(read_lines(uri)).combine_chunks()
    if not all(_WNID.fullmatch(word) for word in pc.unique(lines).to_pylist()):
        raise ManifestError(
            f"{uri}: must have the wnid of each validation image in turn (n01440764); the devkit's numbers follow no "
            "order of the wnids: translate them by its meta.mat (docs/data.md has the lines), or give Kaggle's "
            f"{TRUTHS[0]}"
        )
    return lines


def _names_beside(folder: str) -> dict[str, str]:
    """Wnid → its words, where a list of them lies beside."""
    for name in _NAMES:
        if exists(uri := join(folder, name)):
            found = extract(read_lines(uri), r"^(?P<wnid>n\d{8})\s+(?P<words>.+?)\s*$")
            return dict(zip(found["wnid"].to_pylist(), found["words"].to_pylist(), strict=True))
    return {}


def _coco_rows(uri: str, content: Mapping[str, Any]) -> pa.Table:
    category = {entry["image_id"]: str(entry["category_id"]) for entry in content.get("annotations", ())}
    images, text = content["images"], pa.large_string()
    return annotation_table(
        path=pa.array([image["file_name"] for image in images], text),
        label=pa.array([category.get(image["id"]) for image in images], text),
        split=split_of_file(uri),
    )


def _category_names(categories: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Name of each category by ascending id; with its id where several have one name."""
    ordered = {number: str(categories[number].get("name", number)) for number in sorted(categories)}
    times = Counter(ordered.values())
    return {number: name if times[name] == 1 else f"{name} ({number})" for number, name in ordered.items()}


def _renamed(rows: pa.Table, names: Mapping[str, str]) -> pa.Table:
    index = pc.index_in(rows["label"], pa.array(list(names), pa.large_string()))
    label = pc.take(pa.array(list(names.values()), pa.large_string()), index)
    return rows.set_column(rows.column_names.index("label"), "label", label)


def _places_rows(root: str, uri: str) -> pa.Table:
    split = split_of_file(uri) or "train"
    listed = extract(read_lines(uri), r"^/?(?P<path>\S+)(?:\s+(?P<label>\d+))?\s*$")
    folder = next((name for name in _PLACES_FOLDERS[split] if exists(join(root, name))), "")
    path = joined("/", folder, listed["path"]) if folder else listed["path"]
    return annotation_table(path=path, label=_given(listed["label"]), split=split)
