"""What there is to tag: a list gives `tag` the videos that it gives `prepare`; an inventory its videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.build import read_manifest
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.vanished import Vanished
from pipeline.storage.files import LISTING_SCHEMA, StorageError, content_version, list_files
from pipeline.tagging import source as module
from pipeline.tagging.reader import KnownVideos
from pipeline.tagging.rows import tag_rows
from pipeline.tagging.source import SourceListing, list_source, new_or_changed, vanished
from pipeline.tagging.windows import WindowGrid, plan_units
from pipeline.tagging.writer import unfinished_version, write_plan

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
    monkeypatch.setattr(module, "list_files", _listed_without_network)
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
    return LISTING_SCHEMA.empty_table() if folder.startswith("s3://") else list_files(folder, recursive=recursive)


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
    with pytest.raises(StorageError, match=r"list\.csv: the line 'name' is no `path label`; give a list"):
        list_source(str(listed))
    pq.write_table(pa.table({"name": ["a.mp4"]}), source / "list.parquet")
    with pytest.raises(StorageError, match="has no column uri or path or video"):
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
    with pytest.raises(StorageError, match="lists no ETag; give an S3 Inventory"):
        list_source(str(tmp_path / "manifest.json"))


def _tagged(listing: SourceListing, output: Path) -> KnownVideos:
    """The output of a run over a listing, as far as comparing needs it."""
    (fresh,) = new_or_changed(listing, KnownVideos(str(output)))
    unread = fresh.set_column(fresh.column_names.index("status"), "status", pa.array(["unread"] * len(fresh)))
    assert write_plan(str(output), 0, plan_units(unread, WindowGrid(1.0, 1.0), 4), {"weights_digest": "abc"})
    planned = unfinished_version(str(output), 1)
    assert planned is not None
    for number in planned.missing_chunks():
        planned.write_chunk(number, tag_rows(planned.chunk(number), {}, WindowGrid(1.0, 1.0), 0, "r", 0))
    planned.commit({})
    return KnownVideos(str(output))


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
