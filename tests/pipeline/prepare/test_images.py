"""Sets of images: original bytes, one row an image, every broken one with its reason, each kind in its own set."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.validation import fixed_views
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.text_columns import ManifestError
from pipeline.prepare.plan import preview_set
from pipeline.prepare.run import Outcome, PrepareSettings
from pipeline.prepare.versions import read_rejected
from pipeline.sampling import ViewConfig
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.storage.files import write_bytes
from pipeline.transcode.config import TranscodeConfig
from tests.support.numbered import write_numbered
from tests.support.pictures import centred, drawn, photograph, write_drawn
from tests.support.prepared import prepare, read_clips

VIEW = ViewConfig(num_frames=1, size=32, media="image", interpolation="bicubic", crop_share=0.8)


def settings(**changes: Any) -> PrepareSettings:
    transcode = TranscodeConfig(mode=changes.pop("mode", "transcode"))
    manifest = ManifestConfig(media=changes.pop("media", "image"), **changes)
    return PrepareSettings(manifest, transcode, DecodeConfig(), StoreConfig(row_group_bytes=20_000), seed=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photographs and drawings, with bad ones among them, and a video."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        write_drawn(folder / "drawn" / f"{number}.png", seed=number)
    (folder / "photo").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(photograph(name), folder / "photo" / name)
    drawn().convert("CMYK").save(folder / "photo" / "print.jpg")
    drawn().save(folder / "drawn" / "moves.gif", save_all=True, append_images=[drawn(seed=1)])
    (folder / "drawn" / "empty.jpg").touch()
    (folder / "photo" / "page.jpg").write_text("<html><title>404</title></html>")
    (folder / "photo" / "cut.jpg").write_bytes(photograph().read_bytes()[:20_000])
    Image.new("1", (20_000, 20_000)).save(folder / "drawn" / "bomb.png")
    shutil.copy(write_numbered(folder / "clip.mp4"), folder / "photo" / "video.jpg")
    return folder


@pytest.fixture(scope="module")
def outcome(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, PreparedSet]:
    output = str(tmp_path_factory.mktemp("set"))
    return prepare(str(source), output, settings(), workers=0), open_prepared(output)


def rows(prepared: PreparedSet) -> list[dict[str, Any]]:
    return read_clips(prepared.uri).to_pylist()


def test_original_bytes_are_stored_as_clips_of_one_frame(outcome: tuple[Outcome, PreparedSet]) -> None:
    stored = rows(outcome[1])
    assert len(stored) == 10
    for row in stored:
        assert row["video"] == Path(row["uri"]).read_bytes()
        assert row["label"] == Path(row["uri"]).parent.name
        assert (row["num_frames"], row["start_seconds"], row["end_seconds"]) == (1, 0.0, 0.0)
    sizes = {Path(row["uri"]).name: (row["width"], row["height"]) for row in stored}
    assert sizes["china.jpg"] == (640, 427)


def test_every_other_image_is_a_row_with_its_reason(outcome: tuple[Outcome, PreparedSet]) -> None:
    record, prepared = outcome[0].version, outcome[1]
    found = read_rejected(prepared.uri, record["rejected"]).to_pylist()
    assert {Path(row["uri"]).name: row["reason"] for row in found} == {
        "empty.jpg": "empty",
        "page.jpg": "not_an_image",
        "cut.jpg": "damaged",
        "bomb.png": "max_image_pixels",
        "video.jpg": "not_an_image",
    }
    (video,) = (row["message"] for row in found if row["uri"].endswith("video.jpg"))
    assert "MP4" in video
    assert "media=video" in video
    assert record["counts"]["animations"] == 1
    assert record["counts"]["files_skipped"] == {".mp4": 1}


def test_views_are_the_test_transform(outcome: tuple[Outcome, PreparedSet]) -> None:
    assert outcome[1].media == "image"
    by_id = {row["clip_id"]: row for row in rows(outcome[1])}
    views = list(fixed_views(outcome[1], VIEW, split="all", count=100))
    assert len(views) == 10
    for view in views:
        with Image.open(by_id[view.clip_id]["uri"]) as picture:
            np.testing.assert_array_equal(view.frames[0], centred(picture.convert("RGB"), 40, 32))


def test_a_reference_stores_no_bytes(source: Path, tmp_path: Path) -> None:
    prepare(str(source), str(tmp_path), settings(mode="reference"), workers=0)
    prepared = open_prepared(str(tmp_path))
    assert {row["video"] for row in rows(prepared)} == {None}
    assert len(list(fixed_views(prepared, VIEW, split="all", count=100))) == 10


def test_the_other_kind_alone_is_a_clear_message(tmp_path: Path) -> None:
    write_drawn(tmp_path / "images" / "a.png")
    write_numbered(tmp_path / "a.mp4")
    with pytest.raises(ManifestError, match=r"holds no video, but 1 images; set media=image"):
        preview_set(str(tmp_path / "images"), str(tmp_path / "set"), settings(media="video"))
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(ManifestError, match=r"holds no image, but 1 videos; set media=video"):
        preview_set(str(tmp_path), str(tmp_path / "set"), settings())


def test_an_image_among_listed_videos_is_named_as_one(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4")
    write_drawn(tmp_path / "b.png").rename(tmp_path / "b.mp4")
    write_bytes(str(tmp_path / "list.csv"), b"path,label\na.mp4,x\nb.mp4,y\n")
    outcome = prepare(str(tmp_path / "list.csv"), str(tmp_path / "set"), settings(media="video"), workers=0)
    (row,) = read_rejected(str(tmp_path / "set"), outcome.version["rejected"]).to_pylist()
    assert row["reason"] == "not_a_video"
    assert row["message"] == "its content is PNG: media=image prepares images, into a set of their own"


def test_lists_name_images(tmp_path: Path) -> None:
    for number in range(3):
        write_drawn(tmp_path / f"{number} picture.tiff", seed=number)
    lines = "".join(f"{number} picture.tiff {number % 2}\n" for number in range(3))
    write_bytes(str(tmp_path / "train.txt"), lines.encode())
    prepare(str(tmp_path / "train.txt"), str(tmp_path / "set"), settings(), workers=0)
    stored = rows(open_prepared(str(tmp_path / "set")))
    assert {(Path(row["uri"]).name, row["label"]) for row in stored} == {
        ("0 picture.tiff", "0"),
        ("1 picture.tiff", "1"),
        ("2 picture.tiff", "0"),
    }
