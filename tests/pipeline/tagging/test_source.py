"""What there is to tag: a list gives `tag` the videos that it gives `prepare`; an inventory its videos."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.build import read_manifest
from pipeline.manifest.errors import ManifestError
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.vanished import Vanished
from pipeline.media import Media
from pipeline.storage.delta import Change, write_data_file
from pipeline.storage.files import LISTING_SCHEMA, content_version, list_existing
from pipeline.tagging import source as module
from pipeline.tagging.reader import KnownVideos
from pipeline.tagging.schema import VIDEO_SCHEMA
from pipeline.tagging.source import SourceListing, deleted, list_source, new_or_changed, vanished
from pipeline.tagging.tables import Changes, create_tables
from pipeline.tagging.windows import video_id
from tests.support.packed import write_parquet, write_tar
from tests.support.tag_output import commit

NAMES = ("a.mp4", "b, ' [c].webm", "in a folder/d é.avi", "partly.mp4")
PATHS = ("a.mp4", "in a folder/d é.avi", "/elsewhere/e.mp4", "s3://bucket/a key/f.mp4", "a.mp4", "nowhere/g.mov")
TABLE = "{header}\n" + "".join(f'"{path}",x\n' for path in PATHS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "a source"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def _parquet(*columns: str) -> bytes:
    """The first column holds the paths; the last row has none."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: ["x"] * (len(PATHS) + 1) for name in columns} | {columns[0]: [*PATHS, None]}), sink)
    return sink.getvalue().to_pybytes()


def _kinetics() -> bytes:
    """One clip of the folder by its name, one that is missing."""
    return b"label,youtube_id,time_start,time_end,split\nx,partly,0,10,train\ny,absent,0,10,train\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("list.csv", TABLE.format(header=f"{column},label").encode())
            for column in ("uri", "path", "video", "PATH", "video_path", "filename", "file")
        ),
        ("LIST.CSV", TABLE.format(header="path,label").replace("\n", "\r\n").encode("utf-8-sig")),
        ("list.csv", "".join(f"{path},3\n" for path in PATHS).encode()),
        ("list.csv", "".join(f"{path} 3\r\n" for path in PATHS).encode("utf-8-sig")),
        ("train.txt", "".join(f"{path} 0 120 3\n" for path in PATHS).encode()),
        ("list.txt", "\n".join(PATHS).encode()),
        ("list.parquet", _parquet("uri", "label")),
        ("list.parquet", _parquet("Video")),
        ("list.csv", b"uri,label\nfile:///elsewhere/a%20b.mp4,x\nfile:///elsewhere/%ff.mp4,x\n"),
        ("annotations.csv", b"path,label\na.mp4,x\ngone.mp4,x\n"),
        ("k.csv", _kinetics()),
    ],
)
def test_a_list_gives_the_videos_that_it_gives_prepare(
    name: str, content: bytes, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, in the same order. Those that the source does not hold are rejected there, and missing here."""
    monkeypatch.setattr(module, "list_existing", _listed_without_network)
    (source / name).write_bytes(content)
    manifest = read_manifest(str(source / name), ManifestConfig(), seed=0)
    prepared = manifest.rows["uri"].to_pylist()
    missing = [f"{source}/{row['uri']}" for row in manifest.rejected.to_pylist() if row["reason"] == "missing"]
    tagged = _versions(source / name)
    assert len(tagged) > 1
    assert [uri for uri in tagged if uri not in missing] == prepared
    assert sorted(tagged) == sorted([*prepared, *missing])
    for uri, version in tagged.items():
        assert version == (content_version(uri) if Path(uri).exists() else "missing")


def _listed_without_network(folder: str, recursive: bool) -> pa.Table:
    return LISTING_SCHEMA.empty_table() if folder.startswith("s3://") else list_existing(folder, recursive=recursive)


def test_sizes_are_those_of_the_listing_where_there_is_one(source: Path, tmp_path: Path) -> None:
    (source / "list.csv").write_text("path\na.mp4\nnowhere.mp4\n")
    write_tar(tmp_path / "shards" / "0.tar", [{"jpg": b"12345"}])
    sizes = {place: _sizes(place) for place in (str(source), str(source / "list.csv"))}
    assert sizes[str(source)] == {f"{source}/{name}": len(name.encode()) for name in NAMES}
    assert sizes[str(source / "list.csv")] == {f"{source}/a.mp4": 5, f"{source}/nowhere.mp4": None}
    assert set(_sizes(str(tmp_path / "shards"), "image").values()) == {None}  # not their container's


def _sizes(source: str, media: Media = "video") -> dict[str, int | None]:
    rows = list_source(source, media).videos.to_pydict()
    return dict(zip(rows["uri"], rows["size"], strict=True))


def test_relative_paths_start_at_the_lists_own_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    (source / "list.csv").write_text("path\na.mp4\n./partly.mp4\n")
    for name in (f"{source.name}/list.csv", str(source / "list.csv"), (source / "list.csv").as_uri()):
        assert list(_versions(name)) == [f"{source}/a.mp4", f"{source}/partly.mp4"]


def test_a_list_names_missing_files_too(source: Path) -> None:
    listed = source / "list.csv"
    listed.write_text(f'path,label\na.mp4,x\n"b, \' [c].webm",y\n{source}/partly.mp4,\nnowhere/gone.mp4,z\n')
    versions = _versions(listed)
    assert [Path(uri).name for uri in versions] == ["a.mp4", "b, ' [c].webm", "partly.mp4", "gone.mp4"]
    assert versions[f"{source}/nowhere/gone.mp4"] == "missing"
    assert versions[f"{source}/a.mp4"] == _versions(source)[f"{source}/a.mp4"]
    listed.write_text("name\nprose\n")
    with pytest.raises(ManifestError, match=r"list\.csv: the line 'name' is no `path label`; give a list"):
        list_source(str(listed))
    pq.write_table(pa.table({"name": ["a.mp4"]}), source / "list.parquet")
    with pytest.raises(ManifestError, match="has no column uri or path or video"):
        list_source(str(source / "list.parquet"))


def _versions(source: Path | str) -> dict[str, str]:
    rows = list_source(str(source)).videos.to_pydict()
    return dict(zip(rows["uri"], rows["content_version"], strict=True))


def test_an_inventory_names_the_videos(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [("b", "a%20b.mp4", "e1"), ("b", "c.webm", "e2"), ("b", "notes.txt", "e3")]
    (tmp_path / "data" / "1.csv").write_text("".join(f'"{bucket}","{key}","{etag}"\n' for bucket, key, etag in rows))
    manifest = {"destinationBucket": "arn:aws:s3:::lists", "fileFormat": "CSV", "fileSchema": "Bucket, Key, ETag"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"files": [{"key": "data/1.csv"}]}))
    listing = list_source(str(tmp_path / "manifest.json"))
    assert _versions(tmp_path / "manifest.json") == {"s3://b/a b.mp4": "e1", "s3://b/c.webm": "e2"}
    assert listing.skipped == {".txt": 1}
    (tmp_path / "manifest.json").write_text(
        json.dumps(manifest | {"fileSchema": "Bucket, Key, StorageClass", "files": [{"key": "data/1.csv"}]})
    )
    with pytest.raises(ManifestError, match="lists no ETag; give an S3 Inventory"):
        list_source(str(tmp_path / "manifest.json"))


def _tagged(listing: SourceListing, output: Path) -> KnownVideos:
    """The output of a run over a listing, as far as comparing needs it."""
    (fresh,) = new_or_changed(listing, KnownVideos(str(output)))
    versions = zip(fresh["uri"].to_pylist(), fresh["content_version"].to_pylist(), strict=True)
    commit(str(output), *((uri, version, "unread") for uri, version in versions))
    return KnownVideos(str(output))


def test_what_is_new_changed_and_deleted(source: Path, tmp_path: Path) -> None:
    known = _tagged(list_source(str(source)), tmp_path / "out")
    assert list(new_or_changed(list_source(str(source)), known)) == []
    old = content_version(str(source / "a.mp4"))
    (source / "a.mp4").write_bytes(b"another content")
    (source / "partly.mp4").unlink()
    (source / "new.mp4").write_bytes(b"new")
    listing = list_source(str(source))
    parts = list(new_or_changed(listing, known, most=1))
    assert [len(part) for part in parts] == [1, 1]
    replaces = {Path(row["uri"]).name: row["replaces"] for part in parts for row in part.to_pylist()}
    assert replaces == {"a.mp4": video_id(str(source / "a.mp4"), old), "new.mp4": None}
    gone = deleted(listing, known).to_pylist()
    assert [row["uri"] for row in gone] == [str(source / "partly.mp4")]
    assert gone[0]["video_id"] == video_id(gone[0]["uri"], gone[0]["content_version"])


def test_an_unmounted_folder_is_no_deletion(source: Path, tmp_path: Path) -> None:
    known = _tagged(list_source(str(source)), tmp_path / "out")
    assert vanished(list_source(str(source)), known).count == 0
    (source / "a.mp4").unlink()
    assert vanished(list_source(str(source)), known) == Vanished(1, [str(source / "a.mp4")], 4, False)
    shutil.rmtree(source)
    source.mkdir()
    found = vanished(list_source(str(source)), known)
    assert (found.count, len(found.examples), found.of, found.source_is_empty) == (4, 3, 4, True)


def test_a_list_whose_files_are_missing_is_no_deletion_either(source: Path, tmp_path: Path) -> None:
    """The list still names them; a name whose file was missing before as well has nothing to lose."""
    (tmp_path / "list.csv").write_text("path\n" + "".join(f'"{source}/{name}"\n' for name in ("a.mp4", "gone.mp4")))
    known = _tagged(list_source(str(tmp_path / "list.csv")), tmp_path / "out")
    assert vanished(list_source(str(tmp_path / "list.csv")), known).count == 0
    shutil.rmtree(source)
    found = vanished(list_source(str(tmp_path / "list.csv")), known)
    assert found == Vanished(1, [str(source / "a.mp4")], 2, True)


def test_members_of_tar_files_are_listed_with_their_containers_version(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{n}.tar", [{"jpg": b"one", "cls": b"3"}, {"jpg": b"three"}]) for n in range(2)]
    (tmp_path / "notes.md").touch()
    for source, containers in ((tmp_path, shards), (shards[1], shards[1:])):
        listing = list_source(str(source), "image")
        rows = listing.videos.to_pydict()
        assert [uri.partition("#")[0] for uri in rows["uri"]] == [str(shard) for shard in containers for _ in range(2)]
        assert rows["content_version"] == [content_version(str(shard)) for shard in containers for _ in range(2)]
        assert dict(listing.skipped) == ({".md": 1} if source == tmp_path else {})


def test_pictures_in_parquet_files_are_listed_and_other_tables_are_not(tmp_path: Path) -> None:
    packed = write_parquet(tmp_path / "p" / "train-0.parquet", [b"a", b"b", b"c"], [0, 1, 0], ["x", "y"])
    for source in (packed.parent, packed):
        rows = list_source(str(source), "image").videos.to_pydict()
        assert rows["uri"] == [f"{packed}#row={row}:image/{row}.jpg" for row in range(3)]
        assert set(rows["content_version"]) == {content_version(str(packed))}
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"number": [1]}), tmp_path / "t" / "table.parquet")
    listing = list_source(str(tmp_path / "t"), "image")
    assert (len(listing.videos), dict(listing.skipped)) == (0, {".parquet": 1})


def _python_calls(work: Callable[[], object]) -> int:
    """How many Python functions some work calls, in this thread."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def _compare_everything(folder: Path, count: int) -> int:
    """Python calls of a start over ``count`` videos of a list: a third new, a third changed, and some deleted."""
    output, names = str(folder / f"out{count}"), [f"s3://b/camera/{number:07d}.mp4" for number in range(count)]
    rows = pa.table(
        {
            "uri": names,
            "video_id": range(count),
            "content_version": ["1"] * count,
            **dict.fromkeys(("windows", "windows_failed", "attempts"), [1] * count),
            **dict.fromkeys(("labels", "scores", "spans"), [[]] * count),
            **dict.fromkeys(("status", "message", "weights_digest", "run_key"), ["ok"] * count),
        }
    )
    held = pa.table({field.name: rows[field.name].cast(field.type) if field.name in rows.column_names
                     else pa.nulls(count, field.type) for field in VIDEO_SCHEMA}, schema=VIDEO_SCHEMA)  # fmt: skip
    file = write_data_file(f"{output}/videos", held)
    create_tables(output, {}).commit(Changes(Change(), Change((file,))), {})
    listed = pa.table(
        {
            "uri": names[count // 10 :] + [f"{name}.new.mp4" for name in names[: count // 3]],
            "content_version": ["2"] * (count // 3) + ["1"] * (count - count // 10),
        }
    )
    listed = listed.append_column("size", pa.nulls(len(listed), pa.int64()))
    found = {}

    def start() -> None:
        listing, known = SourceListing(listed, {}), KnownVideos(output)
        found["fresh"] = sum(map(len, new_or_changed(listing, known)))
        found["deleted"] = len(deleted(listing, known))
        found["vanished"] = vanished(listing, known).count

    calls = _python_calls(start)
    assert found == {"fresh": 2 * (count // 3), "deleted": count // 10, "vanished": count // 10}
    return calls


def test_nothing_is_done_row_by_row(tmp_path: Path) -> None:
    """A hundred times as many videos take a few more calls, for pieces of thousands of rows."""
    few, many = (_compare_everything(tmp_path, count) for count in (300, 30_000))
    assert many - few < 30_000 / 20


def test_a_list_by_hand_is_not_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "list_existing", lambda folder, recursive: LISTING_SCHEMA.empty_table())
    calls = []
    for count in (300, 30_000):
        rows = pa.table({"uri": [f"s3://b/{number % 3}/{number}.mp4" for number in range(count)]})
        parts = [rows.append_column("content_version", pa.nulls(count, pa.string()))]
        monkeypatch.setattr(module, "read_uris", lambda source, media, parts=parts: parts)
        calls.append(_python_calls(lambda: list_source(str(tmp_path / "list.csv"))))
    assert calls[1] - calls[0] < 30_000 / 50


def test_a_list_may_name_a_video_twice_and_give_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first version that is given counts; for the others their folders are listed."""
    rows = [("/a/x.mp4", None), ("/b/y.mp4", ""), ("/a/x.mp4", "7"), ("/a/z.mp4", None), ("/a/x.mp4", "8")]
    part = pa.table({"uri": [uri for uri, _ in rows], "content_version": [version for _, version in rows]})
    listed = []

    def folder(name: str, recursive: bool) -> pa.Table:
        assert not recursive
        listed.append(name)
        rows = {"uri": [f"{name}/z.mp4"], "size": [3], "modified_ns": [5], "etag": [None]}
        return pa.table({field.name: pa.array(rows[field.name], field.type) for field in LISTING_SCHEMA})

    monkeypatch.setattr(module, "list_existing", folder)
    monkeypatch.setattr(module, "read_uris", lambda source, media: [part])
    versions = _versions("list.csv")
    assert list(versions) == ["/a/x.mp4", "/b/y.mp4", "/a/z.mp4"]
    assert (versions["/a/x.mp4"], versions["/b/y.mp4"]) == ("7", "missing")
    assert versions["/a/z.mp4"] not in ("missing", "")
    assert listed == ["/a", "/b"]
