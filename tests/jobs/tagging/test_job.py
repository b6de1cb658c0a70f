"""Images good and bad, prepared and tagged, loose and packed: each a row with a reason, or scores of the right pixels.

Without Ray; the stages run in this process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs import tag
from jobs.core.errors import UserError
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Classifier
from jobs.tagging import job
from jobs.tagging.config import TagConfig
from jobs.tagging.job_log import working_on
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.prepare.versions import read_rejected
from pipeline.shards.reader import open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.storage.delta import Change
from pipeline.tagging.reader import read_tags, read_videos
from pipeline.tagging.tables import NUMBER, OF_VIDEOS, create_tables
from pipeline.transcode.config import TranscodeConfig
from tests.support.packed import write_parquet, write_tar
from tests.support.pictures import centred, drawn, photograph, write_drawn
from tests.support.prepared import prepare, read_clips
from tests.support.tag_here import runner_here

CLASSES = tuple(f"class {number}" for number in range(8))
REASONS = {
    "truncated.jpg": "damaged",
    "empty.jpg": "empty",
    "page.jpg": "not_an_image",
    "bomb.png": "max_image_pixels",
}
GOOD = ("dot.png", "moves.gif", "moves.webp", "print.jpg", "turned.jpg", "odd turn.jpg", "broken exif.jpg", "china.jpg")


def test_a_source_that_holds_nothing_is_a_mistake(tmp_path: Path) -> None:
    """Before the first table only: later it is a source that has lost its mount, which `refuse_vanished` reports."""
    with pytest.raises(UserError, match=r"^source=.*missing: .*no such"):
        job.list_videos(str(tmp_path / "missing"), "video", None)
    with pytest.raises(UserError, match=r"^source=.*: holds no video; give a folder"):
        job.list_videos(str(tmp_path), "video", None)
    tables = create_tables(str(tmp_path / "out"), {"weights_digest": "abc"})
    assert len(job.list_videos(str(tmp_path), "video", tables).videos) == 0


def test_who_holds_the_job_log_finishes_what_was_decided(tmp_path: Path) -> None:
    output = str(tmp_path)
    tables = create_tables(output, {"weights_digest": "abc"})
    tables.tags.commit(Change(), {NUMBER: "1", OF_VIDEOS: Change().to_json()}, 1)
    with working_on(output) as log:
        settled = job.settled_tables(log, output)
    assert settled is not None
    assert (settled.tags.transaction, settled.videos.transaction) == (1, 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class, so that the folder is one of images without labels."""
    folder = tmp_path_factory.mktemp("images")
    content = photograph().read_bytes()
    (folder / "china.jpg").write_bytes(content)
    (folder / "truncated.jpg").write_bytes(content[:20_000])
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html><title>404 Not Found</title></html>")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    write_drawn(folder / "dot.png", size=(1, 1))
    for suffix in ("gif", "webp"):
        frames = [drawn(200, 150, seed=number) for number in range(3)]
        frames[0].save(folder / f"moves.{suffix}", save_all=True, append_images=frames[1:])
    drawn(200, 150).convert("CMYK").save(folder / "print.jpg")
    for name, turn in (("turned", 6), ("odd turn", 9)):
        exif = Image.Exif()
        exif[274] = turn
        drawn(200, 150, seed=turn).save(folder / f"{name}.jpg", exif=exif)
    broken = b"Exif\0\0MM\0\x2a\0\0\xff\xff" + bytes(20)
    drawn(200, 150, seed=5).save(folder / "broken exif.jpg", exif=broken)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = create_model("hiera_test_96")
    torch.nn.init.normal_(model.head.weight, std=2.0)  # fresh ones are hardly certain of anything, whatever they see
    save_model(path, model, {"classes": json.dumps(CLASSES)})
    return path


@pytest.fixture
def expected(source: Path, weights: Path) -> Mapping[str, Mapping[str, float]]:
    """The scores of what Pillow shows of each good image."""
    classifier = Classifier(str(weights), "fp32", use_gpu=False)
    model = create_model("hiera_test_96").config
    scores = {}
    for name in GOOD:
        with Image.open(source / name) as picture:
            shown = picture.convert("RGB") if "exif" in name else ImageOps.exif_transpose(picture).convert("RGB")
        pixels = centred(shown, math.floor(96 / model.test_crop_share), 96)
        scores[name] = dict(zip(CLASSES, classifier.score(pixels[None, None])[0][0].tolist(), strict=True))
    return scores


def tagged(source: Path, weights: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(job, "task_runner", runner_here)
    config = TagConfig(
        source=str(source), init=str(weights), output=str(output), top_k=8, videos_per_task=4, gallery_videos=4,
        max_failed_share=1.0, tracking=TrackingConfig(uri="none"),
    )  # fmt: skip
    return tag.run(config)


def check_scores(output: Path, expected: Mapping[str, Mapping[str, float]]) -> None:
    """One row an image, by the name that its URI ends with."""
    rows = [row for row in read_tags(str(output)).to_pylist() if row["status"] == "ok"]
    found = {row["uri"].rpartition("/")[2]: dict(zip(row["labels"], row["scores"], strict=True)) for row in rows}
    assert len(rows) == len(found)
    assert max(max(scores.values()) for scores in expected.values()) > 0.3
    assert set(found) == set(expected)
    for name, scores in expected.items():
        assert found[name] == pytest.approx(scores, rel=1e-4), name


def test_bad_images_are_prepared_as_rows_with_a_reason(source: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(ManifestConfig(media="image"), TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)
    outcome = prepare(str(source), str(tmp_path), settings, workers=0)
    rejected = read_rejected(str(tmp_path), outcome.version["rejected"]).to_pylist()
    assert {Path(row["uri"]).name: row["reason"] for row in rejected} == REASONS
    assert all(row["message"] for row in rejected)
    stored = {Path(row["uri"]).name: row for row in read_clips(open_prepared(str(tmp_path)).uri).to_pylist()}
    assert set(stored) == set(GOOD)
    assert (stored["turned.jpg"]["width"], stored["turned.jpg"]["height"]) == (150, 200)
    assert (stored["odd turn.jpg"]["width"], stored["odd turn.jpg"]["height"]) == (200, 150)
    assert outcome.version["counts"]["animations"] == 2


def test_bad_images_are_tagged_as_rows_with_a_reason(
    source: Path,
    weights: Path,
    tmp_path: Path,
    expected: Mapping[str, Mapping[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = tagged(source, weights, tmp_path, monkeypatch)
    videos = {Path(row["uri"]).name: row for row in read_videos(str(tmp_path)).to_pylist()}
    assert set(videos) == {*GOOD, *REASONS}
    assert {name: videos[name]["error_class"] for name in REASONS} == REASONS
    assert all(videos[name]["message"] for name in REASONS)
    assert (report["videos"], report["failed_videos"]) == (len(GOOD) + len(REASONS), len(REASONS))
    assert report["animations"] == 2
    assert {name: videos[name]["frames"] for name in GOOD if videos[name]["frames"] > 1} == {
        "moves.gif": 3,
        "moves.webp": 3,
    }
    assert "animations, by their first frame" in Path(report["report"]).read_text()
    check_scores(tmp_path, expected)


@pytest.mark.parametrize("packed", ["tar", "parquet"])
def test_images_inside_tar_and_parquet_files_are_tagged_alike(
    packed: str,
    source: Path,
    weights: Path,
    tmp_path: Path,
    expected: Mapping[str, Mapping[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = sorted([*GOOD, "truncated.jpg"])
    contents = [(source / name).read_bytes() for name in names]
    if packed == "tar":
        samples = [{name.rpartition(".")[2]: content} for name, content in zip(names, contents, strict=True)]
        write_tar(tmp_path / "shards" / "0.tar", samples)
        members = [f"{number:06d}.{name.rpartition('.')[2]}" for number, name in enumerate(names)]
    else:
        write_parquet(tmp_path / "shards" / "0.parquet", contents, [0] * len(names), ["x"])
        members = [f"{number}.jpg" for number in range(len(names))]
    report = tagged(tmp_path / "shards", weights, tmp_path / "tags", monkeypatch)
    assert (report["videos"], report["failures_by_reason"]) == (len(names), {"damaged": 1})
    check_scores(
        tmp_path / "tags", {member: expected[name] for member, name in zip(members, names, strict=True) if name in GOOD}
    )
    assert Path(report["report"]).read_text().count("data:image/jpeg;base64,") == 4
    assert tagged(tmp_path / "shards", weights, tmp_path / "tags", monkeypatch)["nothing_new"]
