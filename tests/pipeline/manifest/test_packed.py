"""WebDataset's tar files and Hugging Face's Parquet files: samples, labels, splits, and sets made of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.manifest.build import Manifest, read_manifest
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.text_columns import ManifestError
from pipeline.prepare.run import Outcome, PrepareSettings
from pipeline.shards.writer import StoreConfig
from pipeline.storage.members import Member, local_content
from pipeline.transcode.config import TranscodeConfig
from tests.support.numbered import write_numbered
from tests.support.packed import write_parquet, write_tar
from tests.support.pictures import write_drawn
from tests.support.prepared import prepare, read_clips

IMAGES = ManifestConfig(media="image")


def named(manifest: Manifest) -> set[tuple[str, str | None, str]]:
    rows = manifest.rows.to_pylist()
    members = [Member.of(row["uri"]) for row in rows]
    return {(member.name, row["label"], row["split"]) for member, row in zip(members, rows, strict=True) if member}


def test_tar_shards_of_images(tmp_path: Path) -> None:
    train = [{"jpg": b"a", "cls": b"1"}, {"json": json.dumps({"label": 0}).encode(), "PNG": b"b"}]
    write_tar(tmp_path / "set-train-0000.tar", train)
    write_tar(tmp_path / "set-val-0000.tar", [{"seg.png": b"m", "webp": b"c", "cls": b"1\n", "txt": b"words"}])
    manifest = read_manifest(str(tmp_path), IMAGES, seed=0)
    assert manifest.convention == "webdataset"
    assert manifest.classes == ("0", "1")
    assert named(manifest) == {
        ("000000.jpg", "1", "train"),
        ("000001.PNG", "0", "train"),
        ("000000.webp", "1", "val"),
    }


def test_labels_of_tar_shards_may_be_names_and_missing(tmp_path: Path) -> None:
    samples = [{"jpg": b"a", "cls": b"cat"}, {"jpg": b"b", "json": b'{"class": "dog", "x": 1}'}, {"jpg": b"c"}]
    path = write_tar(tmp_path / "train.tar", samples)
    manifest = read_manifest(str(path), IMAGES, seed=0)
    assert {label for _, label, _ in named(manifest)} == {"cat", "dog", None}


def test_a_class_list_names_the_indices(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train.tar", [{"jpg": b"a", "cls": b"1"}])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    config = ManifestConfig(media="image", classes=str(tmp_path / "classes.txt"))
    manifest = read_manifest(str(path), config, seed=0)
    assert manifest.classes == ("cat", "dog")
    assert {label for _, label, _ in named(manifest)} == {"dog"}


def test_a_compressed_or_damaged_tar_is_one_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(ManifestError, match=r"a\.tar: is no readable, uncompressed tar file"):
        read_manifest(str(tmp_path / "a.tar"), IMAGES, seed=0)
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ManifestError, match=r"b\.tar"):
        read_manifest(str(tmp_path / "b.tar"), IMAGES, seed=0)


def test_names_of_members_are_never_paths(tmp_path: Path) -> None:
    """Members are read by their position in the tar file; links and devices among them are left out."""
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"private")
    names = ("../../outside.jpg", f"{outside}", "a/../../../outside.1.jpg", f"x#bytes=0+9/{outside}", "/etc/passwd.jpg")
    path = tmp_path / "set" / "train.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 8
            tar.addfile(member, io.BytesIO(b"picture%d" % number))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"link{number}.jpg")
            member.type, member.linkname = kind, str(outside)
            tar.addfile(member)
    uris = read_manifest(str(path.parent), IMAGES, seed=0).rows["uri"].to_pylist()
    assert uris
    for uri in uris:
        with local_content(uri, 2**20) as content:
            assert content.read_bytes().startswith(b"picture")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["outside.jpg", "set"]


@pytest.mark.parametrize("column", ["image", "x/../../.."])
def test_names_in_parquet_are_never_paths(column: str, tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"private")
    images = [{"bytes": b"picture", "path": name} for name in ("../../outside.jpg", f"#row=1:{column}/../../x.jpg")]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({column: images}), tmp_path / "set" / "train.parquet")
    try:
        uris = read_manifest(str(tmp_path / "set"), IMAGES, seed=0).rows["uri"].to_pylist()
    except ManifestError:
        assert "/" in column
        return
    assert len(uris) == 2
    for uri in uris:
        with local_content(uri, 2**20) as content:
            assert content.read_bytes() == b"picture"


def test_parquet_with_pictures(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [b"a", b"b", b"c"], [1, 0, -1], ["cat", "dog"])
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [b"d"], [1], ["cat", "dog"])
    manifest = read_manifest(str(tmp_path), IMAGES, seed=0)
    assert manifest.convention == "huggingface"
    assert manifest.classes == ("cat", "dog")
    assert named(manifest) == {
        ("0.jpg", "dog", "train"),
        ("1.jpg", "cat", "train"),
        ("2.jpg", None, "train"),
        ("0.jpg", "dog", "val"),
    }


def settings(media: Any) -> PrepareSettings:
    manifest = ManifestConfig(media=media)
    return PrepareSettings(manifest, TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)


def stored(output: str) -> list[dict[str, Any]]:
    return read_clips(output).to_pylist()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_set_is_made_of_packed_images(tmp_path: Path, kind: str) -> None:
    pictures = [write_drawn(tmp_path / f"{number}.jpg", seed=number).read_bytes() for number in range(5)]
    if kind == "tar":
        write_tar(
            tmp_path / "in" / "train.tar", [{"jpg": one, "cls": b"%d" % (n % 2)} for n, one in enumerate(pictures)]
        )
    else:
        write_parquet(tmp_path / "in" / "train.parquet", pictures, [0, 1, 0, 1, 0], ["0", "1"])
    output = str(tmp_path / "set")
    prepare(str(tmp_path / "in"), output, settings("image"), workers=0)
    rows = stored(output)
    assert sorted(row["video"] for row in rows) == sorted(pictures)
    assert all(row["label"] == str(pictures.index(row["video"]) % 2) for row in rows)
    again = prepare(str(tmp_path / "in"), output, settings("image"), workers=0)
    assert isinstance(again, Outcome)
    assert not again.is_new
    assert again.missing_in_source == 0


def test_a_set_is_made_of_packed_videos(tmp_path: Path) -> None:
    videos = [write_numbered(tmp_path / f"{number}.mp4", first=number).read_bytes() for number in range(2)]
    write_tar(tmp_path / "in" / "train.tar", [{"mp4": one, "cls": b"jump"} for one in videos])
    prepare(str(tmp_path / "in"), str(tmp_path / "set"), settings("video"), workers=0)
    rows = stored(str(tmp_path / "set"))
    assert [row["label"] for row in rows] == ["jump", "jump"]
    assert all(row["num_frames"] == 40 for row in rows)
