"""The stages of the demo: which are left out, and the commands that they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.core.config import load_config
from jobs.demo.stages import LABELS_FILE, STAGES, missing_labels, run_stage, stage_arguments
from jobs.prepare import command as prepare
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.synthetic.scene_images import SCENE_CLASSES, cut_scene_images
from pipeline.media import Media
from pipeline.tagging.reader import read_tags, read_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    render_motion_videos(folder, 8, seed=0, size=64, num_frames=20)
    return folder


def _prepared(source: Path, output: Path) -> None:
    prepare.run(
        prepare.PrepareConfig(
            source=str(source), output=str(output / "set"), workers=0, tracking=TrackingConfig(uri="none")
        )
    )


def _left_out(output: Path) -> dict[str, str | None]:
    return {name: missing_labels(name, str(output)) for name in (stage.command.name for stage in STAGES)}


def test_bare_videos_leave_out_what_needs_labels(videos: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in videos.rglob("*.*"):
        (bare / path.name).write_bytes(path.read_bytes())
    _prepared(bare, tmp_path / "demo")
    reasons = _left_out(tmp_path / "demo")
    assert [name for name, reason in reasons.items() if reason] == ["finetune", "evaluate", "tag"]
    assert "annotations.csv" in str(reasons["finetune"])


def test_labels_without_held_out_videos_leave_out_evaluation_alone(videos: Path, tmp_path: Path) -> None:
    paths = sorted(videos.rglob("*.*"))
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,split\n" + "".join(f"{path},{path.parent.name},train\n" for path in paths))
    _prepared(listing, tmp_path / "demo")
    assert [name for name, reason in _left_out(tmp_path / "demo").items() if reason] == ["evaluate"]


@pytest.mark.parametrize("media", ["video", "image"])
def test_every_stage_prints_a_command_that_works(media: Media, videos: Path, tmp_path: Path) -> None:
    """Also where a path holds a space."""
    for stage in STAGES:
        arguments = stage_arguments(stage, str(tmp_path / "my demo"), str(videos), 0, media)
        loaded = load_config(stage.command.config_class, stage.command.name, arguments)
        assert isinstance(loaded, stage.command.config_class)
        assert "my demo" in (loaded.output or loaded.tracking.uri)


def test_labels_are_passed_on_where_there_are_any(videos: Path, tmp_path: Path) -> None:
    assert "annotations=null" in stage_arguments(STAGES[0], "/demo", str(videos), seed=0)
    (tmp_path / "annotations.csv").touch()
    assert f"annotations={tmp_path}/annotations.csv" in stage_arguments(STAGES[0], "/demo", str(tmp_path), seed=0)


# The whole way on images, at tiny sizes: what is trained and tagged, not how well.
TINY: dict[str, list[str]] = {
    "prepare": ["workers=0"],
    "pretrain": ["model=mae_hiera_test_96", "workers=1", "steps=4", "global_batch=8", "micro_batch=4",
                 "validation.knn_clips=24"],
    "finetune": ["model=hiera_test_96", "workers=1", "steps=4", "global_batch=8", "micro_batch=4"],
}  # fmt: skip


@pytest.fixture(scope="module")
def image_demo(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Every stage's report but that of `compare`, from the demo's own arguments."""
    output = tmp_path_factory.mktemp("images")
    cut_scene_images(output / "source", 80, seed=0, annotations=LABELS_FILE)
    reports = {}
    for stage in STAGES[:-1]:
        name = stage.command.name
        assert missing_labels(name, str(output)) is None
        arguments = stage_arguments(stage, str(output), str(output / "source"), 0, "image")
        reports[stage.name] = dict(run_stage(stage.command, [*arguments, *TINY.get(name, []), "tracking.uri=none"]))
    return output, reports


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_images_are_pretrained_and_fine_tuned(image_demo: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    output, reports = image_demo
    assert reports["prepare"]["clips_by_split"] == {"train": 56, "val": 24}
    for phase in ("pretrain", "finetune"):
        lines = (output / phase / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
        assert len(losses) == 4
        assert all(0.1 < loss < 4 for loss in losses)
        assert reports[phase]["failed_views"] == 0
    with Image.open(output / "pretrain" / "reconstructions.png") as picture:
        assert min(picture.size) > 96


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_images_are_evaluated_by_one_view(image_demo: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    output, reports = image_demo
    rows = pq.read_table(output / "evaluate" / "predictions.parquet").to_pylist()
    assert (reports["evaluate"]["images_scored"], len(rows)) == (24, 24)
    right = [row["predicted"] == row["label"] for row in rows]
    assert reports["evaluate"]["top1"] == pytest.approx(sum(right) / len(right))
    assert (output / "evaluate" / "confusion.png").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_images_are_tagged_one_row_each_with_a_gallery(
    image_demo: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    output, reports = image_demo
    tags = read_tags(str(output / "tag")).to_pylist()
    assert (len(tags), reports["tag"]["failed_videos"]) == (80, 0)
    assert all(set(row["labels"]) <= set(SCENE_CLASSES) and len(row["labels"]) == 5 for row in tags)
    assert {row["uri"] for row in tags} == set(read_videos(str(output / "tag"))["uri"].to_pylist())
    assert Path(reports["tag"]["report"]).read_text().count("data:image/jpeg;base64,") >= 8
