"""One rule for the paths of lists, and files found by path, by a form of it, or by name."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.manifest.path_index import ListingIndex, RowIndex, uri_of_path
from pipeline.storage.files import LISTING_SCHEMA


def listing_of(*uris: str) -> ListingIndex:
    rows = pa.table({"uri": uris, "size": [1] * len(uris), "modified_ns": [0] * len(uris), "etag": uris})
    return ListingIndex(rows.cast(LISTING_SCHEMA))


def column(*texts: str | None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("a.mp4", "/videos/a.mp4"),
        ("./a.mp4", "/videos/a.mp4"),
        (" b/a.mp4 ", "/videos/b/a.mp4"),
        ("b//x/../a.mp4", "/videos/b/a.mp4"),
        ("/other/a.mp4", "/other/a.mp4"),
        ("file:///other/a%20b.mp4", "/other/a b.mp4"),
        ("s3://bucket/a.mp4", "s3://bucket/a.mp4"),
    ],
)
def test_a_path_has_one_uri(path: str, uri: str) -> None:
    assert uri_of_path("/videos", path) == uri


def test_the_first_row_that_holds_a_text_is_found() -> None:
    index = RowIndex(pa.array(["b", "a", "b", None]))
    assert index.rows(pa.array(["b", "a", "c", None])).to_pylist() == [0, 1, None, None]
    assert index.counts(pa.array([0, 1, None], pa.int64())).to_pylist() == [2, 1, None]
    assert index.alike(pa.array([0, 1, None], pa.int64()), 1).to_pylist() == [2, None, None]


def test_without_texts_nothing_is_found() -> None:
    assert RowIndex(pa.array([], pa.large_string())).rows(pa.array(["a"])).to_pylist() == [None]


def test_a_path_is_found_by_case_and_unicode_form_unless_several_files_fit() -> None:
    index = listing_of("/v/Caf\u00e9.mp4", "/v/x.mp4", "/v/X.mp4")
    found, messages = index.rows_of(column("/v/cafe\u0301.MP4", "/v/X.mp4", "/v/x.MP4", "/v/none.mp4", None))
    assert found.to_pylist() == [0, 2, None, None, None]
    named = "several files are forms of this path: /v/x.mp4, /v/X.mp4; rename all but one"
    assert messages.to_pylist() == [None, None, named, None, None]


def test_a_name_is_found_with_its_times_or_bare() -> None:
    index = listing_of("/v/class/abc_000001_000011.mp4", "/v/def.webm")
    batch = pa.table({"stem": ["abc_000001_000011", "def_000002_000012", "x"], "bare_id": ["abc", "def", "x"]})
    assert index.rows_of_names(batch).to_pylist() == [0, 1, None]
