"""Annotation files as text: encodings, line ends, compression, and what a malformed one is called."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.text_columns import (
    csv_batches,
    empty_to_null,
    extract,
    first_line,
    joined,
    malformed_named,
    read_csv,
    read_lines,
)
from pipeline.storage.files import StorageError

CONTENT = "id,name\n007,é\n1e5,\n"
ROWS = {"id": ["007", "1e5"], "name": ["é", ""]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_encoding_and_line_end_gives_the_same_text(encoding: str, line_end: str, tmp_path: Path) -> None:
    """Ids stay text: 007 and 1e5 are no numbers."""
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT.replace("\n", line_end).encode(encoding))
    assert first_line(str(path)) == "id,name"
    assert read_csv(str(path)).to_pydict() == ROWS


def test_a_compressed_file_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"007,x\n"))
    assert read_csv(str(path), ["id", "name"]).to_pydict() == {"id": ["007"], "name": ["x"]}


def test_lines_keep_their_spaces_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text('a "b, c\n\n  d\t1\n')
    assert read_lines(str(path)).to_pylist() == ['a "b, c', "  d\t1"]


def test_a_broken_row_is_a_mistake_and_a_missing_file_is_storage(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,2,3\n")
    with pytest.raises(ManifestError, match=r"a\.csv: cannot be read .*check the file"):
        list(csv_batches(str(tmp_path / "a.csv")))
    with pytest.raises(StorageError, match=r"none\.csv"):
        list(csv_batches(str(tmp_path / "none.csv")))


def test_any_error_of_a_reader_names_the_file_once() -> None:
    with (
        pytest.raises(ManifestError, match=r"^a\.json: does not follow its convention \(KeyError: 'label'\); check"),
        malformed_named("a.json"),
    ):
        {}["label"]
    with pytest.raises(ManifestError, match=r"^inner$"), malformed_named("a.json"):
        raise ManifestError("inner")


def test_columns() -> None:
    names = pa.chunked_array([["a_1", " "], ["b", None]])
    trimmed = empty_to_null(names)
    assert trimmed is not None
    assert trimmed.to_pylist() == ["a_1", None, "b", None]
    assert empty_to_null(None) is None
    assert joined("/", "root", pa.array([1, 2]), "x").to_pylist() == ["root/1/x", "root/2/x"]
    found = extract(names, r"^(?P<word>[a-z]+)_(?P<number>\d+)$")
    assert found.to_pylist() == [{"word": "a", "number": "1"}, *[{"word": None, "number": None}] * 3]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_what_is_no_text_is_named_with_its_line(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(("id,name\n" * 100_000 + "1,é\n").encode(encoding))
    line = 100_001 if encoding == "latin-1" else 1
    for read in (csv_batches, read_lines):
        with pytest.raises(StorageError, match=rf"a\.csv: line {line} is not UTF-8; convert it: iconv"):
            list(read(str(path)))
