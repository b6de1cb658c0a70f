"""Places: one set of verbs for local paths and object storage; errors that name the place and never a secret."""

from __future__ import annotations

import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import retry
from pipeline.storage.errors import errors_named, redacted
from pipeline.storage.files import (
    LISTING_SCHEMA,
    StorageError,
    absolute,
    content_version,
    content_versions,
    delete,
    exists,
    filesystem,
    is_local,
    is_local_relative,
    join,
    list_files,
    listed_in_parts,
    local_copy,
    local_path,
    read_bytes,
    replace_if_unchanged,
    write_bytes,
    write_if_absent,
)
from tests.support.s3_server import SECRET, set_s3_environment


def test_write_read_exists_delete(place: str) -> None:
    uri = join(place, "a folder", "name with ' & #%41.bin")
    assert not exists(uri)
    write_bytes(uri, b"old")
    write_bytes(uri, b"new")
    assert read_bytes(uri) == b"new"
    assert exists(uri)
    assert exists(join(place, "a folder"))
    delete(uri)
    delete(uri)
    assert not exists(uri)
    with pytest.raises(StorageError) as error:
        read_bytes(uri)
    assert error.value.missing


def test_one_of_many_writers_creates(place: str) -> None:
    uri = join(place, "commit.json")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: write_if_absent(uri, str(number).encode()), range(8)))
    assert sum(won) == 1
    assert read_bytes(uri) == str(won.index(True)).encode()
    assert list_files(place)["uri"].to_pylist() == [absolute(uri)]


def test_one_of_many_writers_replaces(place: str) -> None:
    uri = join(place, "dataset.json")
    assert not replace_if_unchanged(uri, b"", b"nothing is there to replace")
    write_bytes(uri, b"old")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: replace_if_unchanged(uri, b"old", str(number).encode()), range(8)))
    assert sum(won) == 1
    assert read_bytes(uri) == str(won.index(True)).encode()
    assert not replace_if_unchanged(uri, b"old", b"late")


def test_listing(place: str) -> None:
    for name in ("b/2.MP4", "b/1.mp4", "b/deep/3.webm", "top.txt"):
        write_bytes(join(place, name), name.encode())
    table = list_files(place, (".mp4", ".webm"))
    assert table["uri"].to_pylist() == [absolute(join(place, name)) for name in ("b/1.mp4", "b/2.MP4", "b/deep/3.webm")]
    assert table["size"].to_pylist() == [7, 7, 13]
    assert min(table["modified_ns"].to_pylist()) > 1_500_000_000 * 10**9
    flat = list_files(join(place, "b"), recursive=False)["uri"].to_pylist()
    assert flat == [absolute(join(place, name)) for name in ("b/1.mp4", "b/2.MP4")]


def test_columnar_reads_and_local_copies(place: str) -> None:
    write_bytes(join(place, "table.parquet"), _parquet())
    files, path = filesystem(join(place, "table.parquet"))
    assert pq.read_table(path, filesystem=files).num_rows == 3
    with local_copy(join(place, "table.parquet")) as copy:
        assert copy.read_bytes() == _parquet()
        assert copy.suffix == ".parquet"
    with pytest.raises(StorageError), local_copy(join(place, "absent.mp4")):
        pass


def test_names_that_are_no_text_have_a_uri(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff 100%.mp4"
    with open(name, "wb") as file:
        file.write(b"x")
    (uri,) = list_files(str(tmp_path))["uri"].to_pylist()
    assert uri.startswith("file:///")
    assert read_bytes(uri) == b"x"
    path = local_path(uri)
    assert path is not None
    assert os.fsencode(path) == name


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"a")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "class").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    uris = list_files(str(tmp_path / "set"))["uri"].to_pylist()
    assert uris == [str(tmp_path / "set" / "class" / "a.mp4"), str(tmp_path / "set" / "gone.mp4")]


def test_what_cannot_be_looked_at_is_listed_without_a_time(tmp_path: Path) -> None:
    """A link to itself and one that dangles end no listing; nothing about them is known, so neither is a version."""
    (tmp_path / "good.mp4").write_bytes(b"x")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x.mp4").symlink_to("x.mp4")
    for listing in (list_files(str(tmp_path)), *listed_in_parts(str(tmp_path))):
        assert [Path(uri).name for uri in listing["uri"].to_pylist()] == ["gone.mp4", "good.mp4", "x.mp4"]
        versions = content_versions(listing).to_pylist()
        assert (versions[0], versions[2]) == (None, None)
        assert versions[1] == content_version(str(tmp_path / "good.mp4"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.EACCES, ["a.mp4", "closed/"]), (errno.EIO, ["a.mp4", "closed/"]), (errno.ENOENT, ["a.mp4"])],
)
def test_a_folder_below_a_source_that_cannot_be_listed_is_named(
    code: int, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was deleted meanwhile is not part of it. The root, and any folder of an output, must be readable."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    _refuse_to_list(tmp_path / "closed", code, monkeypatch)
    (listing,) = listed_in_parts(str(tmp_path))
    assert listing["uri"].to_pylist() == [str(tmp_path / expected[0]), *(f"{tmp_path}/{name}" for name in expected[1:])]
    if code != errno.ENOENT:
        with pytest.raises(StorageError, match=os.strerror(code).lower()):
            list_files(str(tmp_path))
    with pytest.raises(StorageError, match=os.strerror(code).lower()):
        next(listed_in_parts(str(tmp_path / "closed")))


def _refuse_to_list(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 000 does not hold root back, as which tests may run."""
    scandir = os.scandir

    def refusing(path: str | Path) -> Any:
        if Path(path) == folder:
            raise OSError(code, os.strerror(code))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_folders_may_lie_deeper_than_the_stack(tmp_path: Path) -> None:
    """1,500 levels fit into the longest path that the system takes."""
    deep = tmp_path
    for _ in range(1500):
        deep /= "d"
        deep.mkdir()
    (deep / "a.mp4").write_bytes(b"x")
    (listing,) = listed_in_parts(str(tmp_path))
    assert listing["uri"].to_pylist() == [str(deep / "a.mp4")]
    (deep / "a.mp4").unlink()
    for folder in (deep, *list(deep.parents)[: 1500 - 1]):  # pytest's own removal recurses
        folder.rmdir()


def test_joining_and_kinds_of_places() -> None:
    assert join("s3://bucket/", "a", "/b/") == "s3://bucket/a/b"
    assert join("/", "a") == "/a"
    assert is_local_relative("a/b")
    assert not is_local_relative("/a")
    assert not is_local_relative("s3://a/b")
    assert is_local("file:///a")
    assert not is_local("s3://a/b")
    assert absolute("s3://a/b") == "s3://a/b"
    assert os.path.isabs(absolute("a"))


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/key", "scheme 'gs' is not supported"),
        ("s3://user:hidden@bucket/key", "credentials inside a URI are refused"),
        ("s3:///key", "names no bucket"),
    ],
)
def test_places_that_cannot_be(uri: str, says: str) -> None:
    with pytest.raises(StorageError, match=says) as error:
        read_bytes(uri)
    assert "hidden" not in str(error.value)


def test_an_unwritable_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file is where a folder has to be") as error:
        write_bytes(str(tmp_path / "file" / "below"), b"x")
    copy = pickle.loads(pickle.dumps(error.value))  # noqa: S301 our own bytes
    assert (str(copy), copy.missing) == (str(error.value), error.value.missing)


def test_a_time_out_of_object_storage_is_no_fault_of_a_path() -> None:
    with (
        pytest.raises(StorageError, match="answered ReadTimeoutError; check AWS_ENDPOINT_URL"),
        errors_named("s3://b/k"),
    ):
        raise botocore.exceptions.ReadTimeoutError(endpoint_url="http://server")


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    set_s3_environment(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(retry, "BUDGET_SECONDS", 0.5)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL") as error:
        read_bytes("s3://bucket/key")
    assert SECRET not in str(error.value)
    assert not error.value.missing


def test_credentials_in_uris_are_never_shown() -> None:
    assert redacted("https://user:pw@host/path?token=1") == "https://host/path"
    assert redacted("/a@b/c") == "/a@b/c"


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2, 3]}), sink)
    return sink.getvalue().to_pybytes()


# One rule for content versions: a listing and a look at the object alone agree.


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
