"""Members of tar and Parquet files: their URIs, their bytes, and what a missing one says."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.build import read_manifest
from pipeline.manifest.formats import ManifestConfig
from pipeline.storage.errors import StorageError
from pipeline.storage.files import content_version, local_path, write_bytes
from pipeline.storage.members import Member, container_of, containers_of, local_content, version_of
from tests.support.packed import write_parquet, write_tar

CONTENTS = [bytes([number]) * (1000 + number) for number in range(5)]


def test_uris_name_members_and_nothing_else() -> None:
    member = Member.of("s3://b/train#1.tar#bytes=512+20/a/b c.jpg")
    assert member == Member("s3://b/train#1.tar", 512, 20, "", "a/b c.jpg")
    assert Member.of("/x.parquet#row=7:image/") == Member("/x.parquet", 7, 0, "image", "")
    for uri in ("/videos/a#1.mp4", "/x.tar", "/x.tar#bytes=1/a", "/x.zip#bytes=1+2/a", "/x.parquet#row=1/a"):
        assert Member.of(uri) is None
        assert container_of(uri) == uri


def members(place: str, name: str) -> list[str]:
    config = ManifestConfig(media="image", convention="auto")
    uris = read_manifest(f"{place}/{name}", config, seed=0).rows["uri"].to_pylist()
    return sorted(uris, key=lambda uri: Member.of(uri).start)  # type: ignore[union-attr]


def stored(place: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "local" / "a.tar", [{"jpg": content, "cls": b"1"} for content in CONTENTS])
    write_parquet(tmp_path / "local" / "b.parquet", CONTENTS, [0, 1, 0, 1, 0], ["x", "y"])
    for name in ("a.tar", "b.parquet"):
        write_bytes(f"{place}/{name}", (tmp_path / "local" / name).read_bytes())


@pytest.mark.parametrize("name", ["a.tar", "b.parquet"])
def test_members_hold_their_own_bytes(place: str, tmp_path: Path, name: str) -> None:
    stored(place, tmp_path)
    found = members(place, name)
    assert len(found) == 5
    for uri, content in zip(found, CONTENTS, strict=True):
        with local_content(uri, 10**6) as path:
            assert path.read_bytes() == content
        assert version_of(uri) == content_version(f"{place}/{name}")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    stored(str(tmp_path), tmp_path)
    for uri, message in (
        (f"{tmp_path}/none.tar#bytes=0+4/a.jpg", "no such file"),
        (f"{tmp_path}/a.tar#bytes=99999+9999/a.jpg", "ends within a.jpg"),
        (f"{tmp_path}/b.parquet#row=5:image/a.jpg", "has 5 rows, not row 5"),
    ):
        with pytest.raises(StorageError, match=message), local_content(uri, 10**6):
            pass


@pytest.mark.parametrize("name", ["a.tar", "b.parquet"])
def test_a_member_that_is_too_large_is_refused(tmp_path: Path, name: str) -> None:
    stored(str(tmp_path), tmp_path)
    uri = max(members(str(tmp_path), name), key=lambda uri: len(Member.of(uri).read()))  # type: ignore[union-attr]
    with pytest.raises(StorageError, match="is over max_bytes=1"), local_content(uri, 1):
        pass


def test_an_ordinary_file_is_its_own_copy(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with local_content(str(tmp_path / "a.mp4"), 10**6) as path:
        assert path == local_path(str(tmp_path / "a.mp4"))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_one_picture_in_many_rows_takes_the_memory_of_one(kind: pa.DataType, tmp_path: Path) -> None:
    """A dictionary makes 100 MiB of a file of a few kilobytes."""
    picture = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([b"a" * 2**20]))
    pictures = pa.StructArray.from_arrays([picture.cast(kind)], ["bytes"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pictures}), path, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 100_000
    del picture, pictures
    before = pa.total_allocated_bytes()
    member = Member.of(f"{path}#row=7:image/")
    assert member is not None
    assert member.read() == b"a" * 2**20
    assert pa.total_allocated_bytes() - before < 2**24


def test_the_containers_of_a_column_are_those_of_each() -> None:
    members = ["/a/b.tar#bytes=1+2/x#bytes=3+4/y.jpg", "/p.PARQUET#row=7:image/7.jpg", "/n\n.tar#bytes=1+2/x\n"]
    uris = [*members, "/a.tar#bytes=1/x", "/v#1.mp4"]
    assert containers_of(pa.chunked_array([uris])).to_pylist() == [container_of(uri) for uri in uris]
