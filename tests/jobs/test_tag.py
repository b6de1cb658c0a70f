"""Tagging a folder with good and bad videos, resuming after a cut, and nothing new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from hiera_video.augmentation.basic import normalize_video
from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.cli import replace
from jobs.core.errors import UserError
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Classifier
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.tag import TagConfig, dry_run, run
from pipeline.decode.config import DecodeConfig, FrameView, TimeView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.manifest.errors import VanishedSourceError
from pipeline.sampling import ViewConfig, center_crop, evaluation_crops, evaluation_indices
from pipeline.tagging.reader import read_tags, read_videos
from pipeline.tagging.window_views import WholeVideo
from pipeline.tagging.windows import window_times

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    metadata = {"classes": json.dumps(MOTION_CLASSES), "command": "finetune", "run_id": "f1", "pretrain_run_id": "p1"}
    save_model(path, create_model("hiera_test_8x64"), metadata)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    render_motion_videos(folder, 5, seed=1, size=64, num_frames=50)
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.webm").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def tagged(weights: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TagConfig, dict[str, Any]]:
    config = TagConfig(
        source=str(source),
        init=str(weights),
        output=str(tmp_path_factory.mktemp("tags") / "tag"),
        window_seconds=0.7,
        hop_seconds=0.5,
        batch_size=3,
        videos_per_task=2,
        tracking=TrackingConfig(uri="none"),
    )
    return config, run(config)


def test_every_file_has_rows_or_a_reason(tagged: tuple[TagConfig, dict[str, Any]], source: Path) -> None:
    config, report = tagged
    videos = {Path(row["uri"]).name: row for row in read_videos(config.output).to_pylist()}
    listed = {path.name for path in source.rglob("*.*")}
    assert set(videos) == listed
    assert report["failed_videos"] == 2
    assert report["windows"] == 5 * 3  # 50 frames at 30 per second: from 0, 0.5 and 0.967 s
    assert {videos[name]["status"] for name in ("empty.webm", "text.mp4")} == {"failed"}
    assert videos["empty.webm"]["error_class"] == "empty"
    assert videos["text.mp4"]["error_class"] == "not_a_video"
    assert report["failures_by_reason"] == {"empty": 1, "not_a_video": 1}
    assert (report["videos_done"], report["attempts_lost"]) == (7, 0)
    rows = read_tags(config.output).to_pylist()
    assert len(rows) == 5 * 3 + 2
    scored = [row for row in rows if row["status"] == "ok"]
    assert all(len(row["labels"]) == 5 and row["scores"] == sorted(row["scores"])[::-1] for row in scored)


def test_scores_are_those_of_decoding_and_scoring_one_window_alone(tagged: tuple[TagConfig, dict[str, Any]]) -> None:
    config, _ = tagged
    classifier = Classifier(config.init, "fp32", use_gpu=False)
    with IsolatedDecoder(DecodeConfig()) as decoder:
        for row in [row for row in read_tags(config.output).to_pylist() if row["status"] == "ok"][::4]:
            info = decoder.probe(row["uri"])
            times = window_times((row["start_seconds"], row["end_seconds"]), 1 / info.fps, 8)
            clips = decoder.decode(row["uri"], [TimeView(times, center_crop(info.height, info.width), (64, 64))])
            expected = dict(zip(MOTION_CLASSES, classifier.score(np.stack(clips))[0][0], strict=True))
            assert row["labels"] == sorted(expected, key=lambda name: -expected[name])[:5]
            assert row["scores"] == pytest.approx([expected[name] for name in row["labels"]], rel=1e-4)


def test_the_same_command_finds_nothing_new(tagged: tuple[TagConfig, dict[str, Any]]) -> None:
    config, report = tagged
    again = run(config)
    assert not report["nothing_new"]
    assert again["nothing_new"]
    assert (again["windows"], again["version"]) == (0, report["version"])


def test_changed_deleted_and_new_videos(weights: Path, source: Path, tmp_path: Path) -> None:
    """Their old rows go with the commit that brings the new ones; all others stay as they are."""
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    config = TagConfig(
        source=str(folder), init=str(weights), output=str(tmp_path / "tag"), window_seconds=0.7, gallery_videos=0,
        tracking=TrackingConfig(uri="none"),
    )  # fmt: skip
    first = run(config)
    before = read_tags(config.output)
    changed, moved, removed, *_ = sorted(path for path in folder.rglob("*.*") if path.stat().st_size > 100)
    changed.write_bytes(removed.read_bytes())
    moved.rename(folder / "moved.webm")
    removed.unlink()
    report = run(replace(config, max_deleted_share=0.5))
    assert (report["videos_done"], report["videos_deleted"], report["version"]) == (2, 2, first["version"] + 1)
    after = read_tags(config.output)
    touched = [str(path) for path in (changed, moved, removed, folder / "moved.webm")]
    unchanged = ~pc.is_in(pc.field("uri"), pa.array(touched))
    assert after.filter(unchanged).sort_by("uri") == before.filter(unchanged).sort_by("uri")
    uris = {row["uri"] for row in read_videos(config.output).to_pylist()}
    assert uris == {str(path) for path in folder.rglob("*.*")} == set(after["uri"].to_pylist())
    assert run(config)["nothing_new"]
    assert read_tags(config.output, as_of=first["version"]).sort_by("uri") == before.sort_by("uri")


def test_an_output_of_an_older_release_is_refused(weights: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "_commits").mkdir()
    (tmp_path / "_commits" / "0.json").write_text("{}")
    config = TagConfig(source=str(source), init=str(weights), output=str(tmp_path), tracking=TrackingConfig(uri="none"))
    with pytest.raises(UserError, match=r"older release; convert them with `python -m jobs\.maintain"):
        run(config)


def test_another_setting_or_other_weights_need_another_output(
    tagged: tuple[TagConfig, dict[str, Any]], weights: Path, tmp_path: Path
) -> None:
    config, _ = tagged
    with pytest.raises(UserError, match=r"hop_seconds: existing 0\.5, now 0\.25"):
        run(replace(config, hop_seconds=0.25))
    with pytest.raises(UserError, match="holds no video"):
        run(replace(config, source=str(weights.parent), output=str(tmp_path / "out")))
    with pytest.raises(UserError, match="init="):
        run(replace(config, init=str(tmp_path)))
    other = tmp_path / "model.safetensors"
    save_model(other, create_model("mae_hiera_test_8x64"))
    with pytest.raises(UserError, match="not a classifier"):
        run(replace(config, init=str(other)))
    with pytest.raises(UserError, match=r"labels=\['flies'\]: no labels of init=.* choose among its 8: moves_left"):
        run(replace(config, labels=("flies",)))
    with pytest.raises(UserError, match="take 99 CPUs"):
        run(replace(config, workers=98, output=str(tmp_path / "out")))


@pytest.mark.slow
def test_a_whole_video_is_one_row_with_its_own_labels(weights: Path, source: Path, tmp_path: Path) -> None:
    """Two clips, three crops: the mean of the six; several labels with thresholds, and features of a fixed size."""
    names = MOTION_CLASSES[:3]
    config = TagConfig(
        source=str(source),
        init=str(weights),
        output=str(tmp_path / "whole"),
        whole_video=WholeVideo(clips=2, frame_stride=2),
        multi_label=True,
        labels=names,
        thresholds={names[0]: 1.0},
        embeddings=True,
        batch_size=6,
        gallery_videos=0,
        tracking=TrackingConfig(uri="none"),
    )
    run(config)
    rows = [row for row in read_tags(config.output).to_pylist() if row["status"] == "ok"]
    assert [(row["window_index"], row["start_seconds"]) for row in rows] == [(0, 0.0)] * 5
    video = next(row for row in read_videos(config.output).to_pylist() if row["status"] == "ok")
    assert {span["label"] for span in video["spans"]} == set(names[1:])
    classifier = Classifier(config.init, "fp32", use_gpu=False)
    view = ViewConfig(num_frames=8, frame_stride=2, size=64)
    with IsolatedDecoder(DecodeConfig()) as decoder:
        info = decoder.probe(rows[0]["uri"])
        views = [
            FrameView(evaluation_indices(info.num_frames, info.fps, view, clip, 2), crop, (64, 64))
            for clip in range(2)
            for crop in evaluation_crops(info.height, info.width, 3)
        ]
        clips = torch.from_numpy(np.stack(decoder.decode(rows[0]["uri"], views)))
    with torch.inference_mode():
        features = classifier.model.embed(normalize_video(clips))
        scores = classifier.model.head(features).sigmoid().mean(0)[1:3].tolist()
    assert dict(zip(rows[0]["labels"], rows[0]["scores"], strict=True)) == pytest.approx(
        dict(zip(names[1:], scores, strict=True)), rel=1e-4
    )
    assert rows[0]["embedding"] == pytest.approx(features.mean(0).tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_source_that_lost_its_mount_deletes_nothing(weights: Path, source: Path, tmp_path: Path) -> None:
    """An unmounted volume is an empty folder; the tags stay until the deletion is confirmed."""
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    config = TagConfig(
        source=str(folder), init=str(weights), output=str(tmp_path / "tag"), tracking=TrackingConfig(uri="none")
    )
    run(config)
    before = read_tags(config.output)
    shutil.rmtree(folder)
    folder.mkdir()
    for _ in range(2):  # not by repetition either
        with pytest.raises(
            VanishedSourceError, match=r"holds no video any more: 7 of 7 .*confirm with max_deleted_share=1"
        ):
            run(config)
    assert read_tags(config.output) == before
    assert dry_run(config)["missing_in_source"] == 7
    report = run(replace(config, max_deleted_share=1.0))
    assert (report["videos"], report["videos_deleted"]) == (0, 7)
    assert run(config)["nothing_new"]  # nothing is left to lose


@pytest.mark.slow
@pytest.mark.clips
def test_every_real_trouble_maker_is_accounted_for(real_clips: Path, weights: Path, tmp_path: Path) -> None:
    source = real_clips / "trouble"
    config = TagConfig(
        source=str(source),
        init=str(weights),
        output=str(tmp_path),
        tracking=TrackingConfig(uri="none"),
    )
    run(config)
    rows = read_videos(config.output).to_pylist()
    statuses = {Path(row["uri"]).name: row["error_class"] or row["status"] for row in rows}
    assert set(statuses) == {path.name for path in source.iterdir()}
    assert statuses["Zulko_moviepy__no_duration.webm"] == "ok"
    assert statuses["Zulko_moviepy__result.webm"] == "empty"
    assert statuses["tensorflow_io__gs-16b-2c-44100hz.mp4"] == "no_video_stream"
    assert "partial" in {row["status"] for row in rows if row["uri"].endswith("dmlc_decord__corrupted.mp4")}
