"""One rule for content versions: a listing and a look at the object alone agree."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.storage.files import LISTING_SCHEMA, content_version, content_versions, join, list_files, write_bytes


def test_a_listing_and_the_object_alone_have_the_same_version(place: str) -> None:
    uris = [join(place, name) for name in ("a.mp4", "in a folder/b.mp4")]
    for uri in uris:
        write_bytes(uri, uri.encode())
    listed = list_files(place)
    assert dict(zip(listed["uri"].to_pylist(), content_versions(listed).to_pylist(), strict=True)) == {
        uri: content_version(uri) for uri in uris
    }
    before = content_version(uris[0])
    write_bytes(uris[0], b"another content")
    assert content_version(uris[0]) != before


def test_the_etag_counts_else_size_and_time() -> None:
    rows = [("a", 1, 2, "etag"), ("b", 1, 2, ""), ("c", 1, 2, None), ("d", 1, None, None)]
    names = LISTING_SCHEMA.names
    listing = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=LISTING_SCHEMA)
    assert content_versions(listing).to_pylist() == ["etag", "1-2", "1-2", None]


def test_a_local_version_is_size_and_time_of_change(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"xyz")
    assert content_version(str(tmp_path / "a")) == f"3-{(tmp_path / 'a').stat().st_mtime_ns}"
