"""Collections that are packed: WebDataset's tar files, and Parquet files with the pictures inside (Hugging Face).

Every sample is a row whose path is a member's URI (`pipeline.storage.members`), so it is read where it lies.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.readers import Annotations, annotation_table, split_of_file
from pipeline.manifest.text_columns import as_text, joined, malformed_named
from pipeline.media import SUFFIXES, Media
from pipeline.storage.files import list_files, local_copy
from pipeline.storage.members import harmless
from pipeline.storage.parquet import open_parquet, read_by_arrow
from pipeline.storage.records import parse_json

Packed = Literal["webdataset", "huggingface"]
_CONVENTIONS: dict[str, Packed] = {".tar": "webdataset", ".parquet": "huggingface"}
_LABEL_KEYS = ("label", "cls", "class", "class_id", "category")
_LABELS = (".cls", ".json")
_MOST_LABEL_BYTES = 2**20
_MOST_HEADER_BYTES = 2**24  # long names and attributes, which `tarfile` reads whole


def packed_convention(skipped: Mapping[str, int]) -> Packed | None:
    """The convention of a folder without loose media, by the suffixes of its files."""
    found = [convention for suffix, convention in _CONVENTIONS.items() if suffix in skipped]
    return found[0] if len(found) == 1 else None


def read_webdataset(uri: str, media: Media) -> Annotations:
    """Tar files: members that share a name up to its first dot are a sample, of one picture or video and its label.

    The label is the text of ``.cls`` or one of `_LABEL_KEYS` of ``.json``. The split is in the tar file's name.
    """
    files = _packed_files(uri, ".tar")
    return Annotations((_tar_rows(file, media) for file in files), digits_are_indices=True)


def read_huggingface(uri: str) -> Annotations:
    """Parquet files with a struct column that holds ``bytes`` (and ``path``), and ``label``; class names from the
    features that `datasets` writes into the schema. The split is in the file's name."""
    files = _packed_files(uri, ".parquet")
    return Annotations((_parquet_rows(file) for file in files), _class_names(files[0]), digits_are_indices=True)


def holds_pictures(uri: str) -> bool:
    """Whether a Parquet file has a struct column with ``bytes``."""
    return _bytes_column(_schema(uri)) is not None


def _packed_files(uri: str, suffix: str) -> list[str]:
    if uri.lower().endswith(suffix):
        return [uri]
    files: list[str] = list_files(uri, (suffix,))["uri"].to_pylist()
    if not files:
        raise ManifestError(f"{uri}: holds no {suffix} file; give the folder or prefix of them")
    return files


def _tar_rows(uri: str, media: Media) -> pa.Table:
    places: list[str] = []
    names: list[str] = []
    labels: list[str | None] = []
    with local_copy(uri) as path:
        try:
            # Not compressed: members are read by their position.
            with _BoundedReads(path.open("rb", buffering=0)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for found, label in _samples(tar, media):
                    places.append(f"{uri}#bytes={found.offset_data}+{found.size}/")
                    names.append(found.name)
                    labels.append(label)
        except tarfile.TarError as error:
            raise ManifestError(
                f"{uri}: is no readable, uncompressed tar file ({error}); unpack .tar.gz once"
            ) from error
    text = pa.large_string()
    with malformed_named(uri):  # names and labels that are no Unicode
        paths = joined("", pa.array(places, text), harmless(pa.array(names, text)))
        return annotation_table(path=paths, label=pa.array(labels, text), split=split_of_file(uri))


class _BoundedReads(io.BufferedReader):
    """A tar file of which no header takes as much memory as it claims to need."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _samples(tar: tarfile.TarFile, media: Media) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """Each sample's picture or video with its label; members of a sample follow each other."""
    sample, content, label = "", None, None
    for member in tar:
        folder, _, file = member.name.rpartition("/")
        key, _, ending = file.partition(".")
        if f"{folder}/{key}" != sample:
            if content is not None:
                yield content, label
            sample, content, label = f"{folder}/{key}", None, None
        if not member.isreg() or member.issparse():
            continue
        suffix = f".{ending.lower()}"
        if suffix in SUFFIXES[media]:
            content = content or member
        elif suffix in _LABELS and member.size <= _MOST_LABEL_BYTES:
            label = label or _label(tar, member, suffix)
    if content is not None:
        yield content, label


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str | None:
    file = tar.extractfile(member)
    text = file.read().decode(errors="replace").strip() if file else ""
    if suffix == ".cls":
        return text or None
    with malformed_named(f"{tar.name!s}: {member.name}"):
        facts = parse_json(text)
        found = [facts[key] for key in _LABEL_KEYS if isinstance(facts.get(key), str | int)]
        return str(found[0]) if found else None


def _schema(uri: str) -> pa.Schema:
    def read(files: pyarrow.fs.FileSystem, path: str) -> pa.Schema:
        with files.open_input_file(path) as file:
            return open_parquet(file, uri).schema_arrow

    return read_by_arrow(uri, read)


def _bytes_column(schema: pa.Schema) -> str | None:
    for field in schema:
        kind = field.type
        # A column's name is a part of a URI that ends at a slash.
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and "/" not in field.name:
            inner = kind.field("bytes").type
            if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
                return str(field.name)
    return None


def _class_names(uri: str) -> tuple[str, ...] | None:
    metadata = _schema(uri).metadata or {}
    with malformed_named(uri):
        features = parse_json(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get("label", {}).get("names")
    return None if names is None else tuple(map(str, names))


def _parquet_rows(uri: str) -> pa.Table:
    """The small columns of a file; its pictures are not read."""
    schema = _schema(uri)
    column = _bytes_column(schema)
    if column is None:
        raise ManifestError(f"{uri}: has no struct column with `bytes`; give convention=parquet for a list of paths")
    wanted = [f"{column}.path"] if schema.field(column).type.get_field_index("path") >= 0 else []
    wanted += ["label"] if "label" in schema.names else []

    def read(files: pyarrow.fs.FileSystem, path: str) -> tuple[int, pa.Table]:
        with files.open_input_file(path) as file:
            opened = open_parquet(file, uri)
            return opened.metadata.num_rows, opened.read(wanted)

    count, table = read_by_arrow(uri, read)
    names: Any = pa.repeat(pa.scalar("", pa.large_string()), count)
    if column in table.column_names:
        names = pc.fill_null(as_text(pc.struct_field(table[column], "path")), "")
    rows = as_text(pa.array(range(count), pa.int64()))
    path = joined("", f"{uri}#row=", rows, f":{column}/", harmless(names))
    label = as_text(table["label"]) if "label" in table.column_names else None
    return annotation_table(path=path, label=label, split=split_of_file(uri))
