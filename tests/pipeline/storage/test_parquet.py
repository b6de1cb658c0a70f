"""Parquet objects by all the ways of writing and reading them."""

from __future__ import annotations

import base64
import io
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from pipeline.storage.errors import StorageError
from pipeline.storage.files import join, write_bytes
from pipeline.storage.parquet import (
    _extension_type,
    open_parquet,
    parquet_bytes,
    read_by_arrow,
    read_columns,
    read_conformed,
    read_table,
    table_bytes,
    write_table,
)

TABLE = pa.table({"number": [1, 2, 3], "name": ["a", None, "c"]}, metadata={"kept": "yes"})


def test_what_is_written_is_read(place: str) -> None:
    uri = join(place, "some.parquet")
    write_table(uri, TABLE)
    for read in (read_table, read_columns):
        assert read(uri).equals(TABLE, check_metadata=True)
        assert read(uri, ["name"]).equals(TABLE.select(["name"]))
        assert read(uri, ("name", "number")).column_names == ["name", "number"]


def test_a_folder_that_looks_like_a_partition_is_no_column(tmp_path: Path) -> None:
    uri = str(tmp_path / "split=train" / "some.parquet")
    write_table(uri, TABLE)
    assert read_columns(uri).column_names == TABLE.column_names


def test_each_table_is_a_row_group_and_options_count() -> None:
    content = parquet_bytes([TABLE, TABLE.slice(1)], TABLE.schema, compression="none")
    groups = pq.ParquetFile(io.BytesIO(content)).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [3, 2]
    assert groups.row_group(0).column(0).compression == "UNCOMPRESSED"
    assert pq.ParquetFile(io.BytesIO(table_bytes(TABLE))).metadata.row_group(0).column(0).compression == "ZSTD"
    assert pq.read_table(io.BytesIO(parquet_bytes([], TABLE.schema))).equals(TABLE.slice(0, 0))


def test_a_missing_object_is_named_with_the_remedy(place: str) -> None:
    uri = join(place, "none.parquet")
    with pytest.raises(StorageError, match=r"none\.parquet: no such file; run prepare first") as caught:
        read_columns(uri, remedy="run prepare first")
    assert caught.value.missing
    with pytest.raises(StorageError) as caught:
        read_table(uri)
    assert caught.value.missing


def test_a_read_that_breaks_off_is_repeated_on_object_storage_alone(place: str) -> None:
    uri, reads = join(place, "some.parquet"), list[str]()
    write_bytes(uri, b"content")

    def breaks_off_once(files: pa.fs.FileSystem, path: str) -> bytes:
        reads.append(path)
        if len(reads) == 1:
            raise OSError("connection lost\nlong trace")
        with files.open_input_file(path) as file:
            return bytes(file.read())

    if uri.startswith("s3://"):
        assert read_by_arrow(uri, breaks_off_once) == b"content"
        assert len(reads) == 2
    else:
        with pytest.raises(StorageError, match=r"some\.parquet: connection lost; check the path") as caught:
            read_by_arrow(uri, breaks_off_once)
        assert not caught.value.missing


class Opens:
    """An object that writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def forged(path: Path, nesting: str) -> pa.Table:
    """A table whose second column is unpickled by whoever looks at its values."""
    pickled = pa.array([pickle.dumps(Opens(path))], pa.large_binary())
    objects = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pickled)
    columns = {
        "plain": objects,
        "list": pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), objects),
        "struct": pa.StructArray.from_arrays([objects], ["inner"]),
        "list of structs": pa.ListArray.from_arrays(
            pa.array([0, 1], pa.int32()), pa.StructArray.from_arrays([objects], ["inner"])
        ),
    }
    return pa.table({"path": ["a.mp4"], "label": columns[nesting]})


@pytest.mark.parametrize("nesting", ["plain", "list", "struct", "list of structs"])
def test_a_column_that_runs_code_is_refused(nesting: str, place: str, tmp_path: Path) -> None:
    """Also where only the other columns are wanted: nothing of such a file is trusted."""
    ran, uri = tmp_path / "ran", join(place, "forged.parquet")
    table = forged(ran, nesting)
    table["label"].to_pylist()
    assert ran.exists()  # what is refused is an attack
    ran.unlink()
    write_table(uri, table)
    message = r"forged\.parquet: column 'label' is of the extension type ray\.data\.arrow_pickled_object"
    for columns in (None, ["path"]):
        for read in (read_table, read_columns):
            with pytest.raises(StorageError, match=message):
                read(uri, columns)
        with pytest.raises(StorageError, match=message):
            read_conformed(uri, table.schema, columns)
    with pytest.raises(StorageError, match=message):
        open_parquet(io.BytesIO(table_bytes(table)), uri)
    assert not ran.exists()


def test_columns_take_the_types_of_the_schema_and_missing_ones_are_null(place: str) -> None:
    uri = join(place, "old.parquet")
    write_table(uri, TABLE)
    schema = pa.schema({"name": pa.large_string(), "added": pa.int64(), "number": pa.int32()})
    expected = [{"name": row["name"], "added": None, "number": row["number"]} for row in TABLE.to_pylist()]
    found = read_conformed(uri, schema)
    assert (found.schema, found.to_pylist()) == (schema, expected)
    assert read_conformed(uri, schema, ["added"]).to_pylist() == [{"added": None}] * 3


NESTED = {
    "list": pa.list_, "large list": pa.large_list, "fixed list": lambda kind: pa.list_(kind, 2),
    "list view": pa.list_view, "struct": lambda kind: pa.struct({"a": pa.int64(), "b": kind}),
    "values of a map": lambda kind: pa.map_(pa.string(), kind), "keys of a map": lambda kind: pa.map_(kind, pa.int64()),
    "dictionary": lambda kind: pa.dictionary(pa.int8(), kind),
    "runs": lambda kind: pa.run_end_encoded(pa.int32(), kind),
    "union": lambda kind: pa.dense_union([pa.field("a", pa.int64()), pa.field("b", kind)]),
}  # fmt: skip


@pytest.mark.parametrize("outer", NESTED)
@pytest.mark.parametrize("inner", NESTED)
def test_extension_types_are_found_at_any_depth(outer: str, inner: str) -> None:
    """Pickled objects by their name, and any other extension type, known or not."""
    plain = NESTED[outer](NESTED[inner](pa.string()))
    assert _extension_type(plain) is None
    for kind in (ArrowPythonObjectType(), pa.uuid(), pa.opaque(pa.binary(), "type", "vendor")):
        assert _extension_type(NESTED[outer](NESTED[inner](kind))) == kind.extension_name


def with_arrow_schema(text: str) -> bytes:
    """A sound file whose footer says this of its Arrow types."""
    content = io.BytesIO()
    with pq.ParquetWriter(content, pa.schema({"name": pa.string()}), store_schema=False) as writer:
        writer.write_table(pa.table({"name": ["a"]}))
        writer.add_key_value_metadata({"ARROW:schema": text})
    return content.getvalue()


def arrow_schema(**fields: pa.DataType) -> str:
    return base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode()


SOUND = table_bytes(TABLE)
DAMAGED = {
    "empty": b"", "text": b"no Parquet", "no footer": b"PAR1" + b"x" * 100, "cut": SOUND[:99] + SOUND[-8:],
    "pages": SOUND[:4] + b"\xff" * 200 + SOUND[204:], "footer": SOUND[:-60] + b"\xff" * 40 + SOUND[-20:],
    "schema that is no base64": with_arrow_schema("!"), "schema that is none": with_arrow_schema("/" * 400),
    "other columns": table_bytes(pa.table({"other": [1]})),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_message(name: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "damaged.parquet")
    write_bytes(uri, DAMAGED[name])
    for read in (read_table, read_columns):
        with pytest.raises(StorageError, match=r"damaged\.parquet: "):
            read(uri, ["name"])
    if name != "other columns":
        with pytest.raises(StorageError, match=r"damaged\.parquet: "):
            read_conformed(uri, TABLE.schema)


def test_a_forged_schema_gives_the_values_no_other_meaning(tmp_path: Path) -> None:
    """It may name extension types, which are refused, or types that the columns do not have."""
    uri = str(tmp_path / "forged.parquet")
    write_bytes(uri, with_arrow_schema(arrow_schema(name=pa.dictionary(pa.int8(), pa.string()), more=pa.int64())))
    assert read_table(uri).to_pydict() == {"name": ["a"]}
    write_bytes(uri, with_arrow_schema(arrow_schema(name=pa.json_())))
    with pytest.raises(StorageError, match="extension type"):
        read_table(uri)


def test_values_that_are_no_schemas_are_one_message(tmp_path: Path) -> None:
    uri = str(tmp_path / "types.parquet")
    write_table(uri, pa.table({"number": ["one"], "name": [[1]]}))
    for column in ("number", "name"):
        with pytest.raises(StorageError, match=r"types\.parquet: is damaged"):
            read_conformed(uri, TABLE.schema, [column])
