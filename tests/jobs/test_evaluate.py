"""Scoring a prepared set by the test protocol, against a plain loop over its clips."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs import sync
from jobs.core.cli import finish, replace
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.evaluate import EvaluateConfig, run
from jobs.prepare import command as prepare
from jobs.runs.source_tree import COMMIT_TAG, source_tags
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Classifier
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from pipeline.datasets.evaluation import ViewProtocol
from pipeline.decode.config import FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.manifest.formats import read_class_list
from pipeline.sampling import ViewConfig, evaluation_crops, evaluation_indices
from pipeline.schema import CLIP_SCHEMA
from pipeline.shards.digests import version_digest
from pipeline.shards.index import write_index
from pipeline.shards.reader import PreparedSet
from pipeline.shards.writer import write_shard
from tests.support.official import official_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# Reversed, so that a class number of the set is never by chance that of the logit.
CLASSES = tuple(reversed(MOTION_CLASSES))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluateConfig, dict[str, Any], int]:
    """Eight clips, one of whose bytes were damaged after preparation, and a video that was never readable."""
    folder = tmp_path_factory.mktemp("evaluate")
    render_motion_videos(folder / "source", 8, seed=3, size=64, num_frames=40)
    (folder / "source" / MOTION_CLASSES[0] / "broken.mp4").write_bytes(b"no video")
    prepare.run(
        prepare.PrepareConfig(source=str(folder / "source"), output=str(folder / "set"), val_share=0.0, workers=2)
    )
    damaged = _damage_a_clip(folder / "set")
    torch.manual_seed(0)
    save_model(folder / "model.safetensors", create_model("hiera_test_8x64"), {"classes": json.dumps(CLASSES)})
    config = EvaluateConfig(
        init=str(folder),
        data=str(folder / "set"),
        output=str(folder / "out"),
        split="train",
        frame_stride=2,
        views=ViewProtocol(clips=2, crops=3),
        batch_size=5,
        tracking=TrackingConfig(uri="none"),
    )
    return config, run(config), damaged


def _damage_a_clip(prepared: Path) -> int:
    """Put a clip that cannot be decoded into the set, as one that `prepare` has stored: digests and index have it."""
    record = json.loads((prepared / "dataset.json").read_text())
    shard, *others = record["shards"]
    table = pq.read_table(prepared / shard["file"])
    videos = pa.array([b"no video", *table["video"].to_pylist()[1:]], pa.large_binary())
    column = table.schema.get_field_index("video")
    changed = table.set_column(column, CLIP_SCHEMA.field("video"), videos).cast(CLIP_SCHEMA)
    shards = [write_shard(str(prepared), Path(shard["file"]).name, changed, 2**30), *others]
    index = write_index(str(prepared), "0001-damaged", shards, record["classes"], {})
    record |= {"shards": shards, "digest": version_digest(shards, record["classes"]), "index": index}
    for name in ("dataset.json", "versions/0001.json"):
        (prepared / name).write_text(json.dumps(record))
    return int(table["clip_id"][0].as_py())


def _plain_loop(config: EvaluateConfig) -> dict[int, dict[str, float]]:
    """Clip → class → mean score, one view after another."""
    classifier = Classifier(config.init, "fp32", use_gpu=False)
    view = ViewConfig(num_frames=8, frame_stride=2, size=64)
    scores = {}
    with IsolatedDecoder() as decoder:
        for shard in (Path(config.data) / "shards").rglob("*.parquet"):
            for clip in pq.read_table(shard).to_pylist():
                if clip["video"] == b"no video":
                    continue
                views = [
                    FrameView(evaluation_indices(clip["num_frames"], clip["fps"], view, number, 2), crop, (64, 64))
                    for number in range(2)
                    for crop in evaluation_crops(clip["height"], clip["width"], 3)
                ]
                singles = [classifier.score(frames[None])[0][0] for frames in decoder.decode(clip["video"], views)]
                scores[clip["clip_id"]] = dict(zip(CLASSES, np.mean(singles, axis=0).tolist(), strict=True))
    return scores


def test_predictions_are_those_of_a_plain_loop(evaluated: tuple[EvaluateConfig, dict[str, Any], int]) -> None:
    config, report, damaged = evaluated
    rows = pq.read_table(Path(config.output) / "predictions.parquet").to_pylist()
    expected = _plain_loop(config)
    assert {row["clip_id"] for row in rows} == {*expected, damaged}
    right = 0
    for row in rows:
        if row["clip_id"] == damaged:
            assert (row["status"], row["predicted"]) == ("not_a_video", None)
            continue
        scores = expected[row["clip_id"]]
        assert row["scores"] == pytest.approx([scores[name] for name in row["labels"]], abs=1e-5)
        assert row["predicted"] == max(scores, key=lambda name: scores[name])
        assert row["label"] == Path(row["uri"]).parent.name
        right += row["label"] == row["predicted"]
    assert report["top1"] == pytest.approx(right / 7)
    assert (report["videos_scored"], report["not_scored_by_reason"]) == (7, {"not_a_video": 1})
    assert (report["videos_not_in_the_set"], report["not_in_the_set_by_reason"]) == (1, {"not_a_video": 1})
    assert report["videos_never_read_by_reason"] == {}
    assert (Path(config.output) / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_number_of_workers_changes_nothing(
    evaluated: tuple[EvaluateConfig, dict[str, Any], int], tmp_path: Path
) -> None:
    """Two models and two decoders wrote the first predictions."""
    config, report, _ = evaluated
    alone = run(replace(config, output=str(tmp_path / "alone"), workers=1, decode_workers=1, batch_size=3))
    same = ("top1", "top5", "mean_class_accuracy", "mean_average_precision", "calibration_error", "videos_scored")
    assert [alone[key] for key in same] == pytest.approx([report[key] for key in same], abs=1e-6)
    tables = [pq.read_table(Path(place) / "predictions.parquet") for place in (config.output, tmp_path / "alone")]
    ours, theirs = (table.to_pylist() for table in tables)
    assert [row | {"scores": pytest.approx(row["scores"], abs=1e-6)} for row in ours] == theirs


def test_sync_tells_of_what_the_scores_are(
    evaluated: tuple[EvaluateConfig, dict[str, Any], int], tmp_path: Path
) -> None:
    """A run that was recorded nowhere while it ran."""
    config, report, _ = evaluated
    finish("evaluate", config, report)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(tracking.uri)
    scored = client.get_run(sync.run(sync.SyncConfig(output=config.output, tracking=tracking))["run_id"])
    claim = json.loads((Path(config.output) / "run.json").read_text())
    assert scored.data.metrics["top1"] == report["top1"]
    assert scored.data.tags["weights_digest"] == claim["pins"]["weights_digest"]
    (given,) = scored.inputs.dataset_inputs
    assert given.dataset.digest == scored.data.tags["data_digest"][:36]
    prepared = client.get_run(sync.run(sync.SyncConfig(output=config.data, tracking=tracking))["run_id"])
    for run_of in (scored, prepared):
        assert run_of.data.tags[COMMIT_TAG] == source_tags()[COMMIT_TAG]


def test_a_finished_output_is_not_scored_again(
    evaluated: tuple[EvaluateConfig, dict[str, Any], int], tmp_path: Path
) -> None:
    config, report, _ = evaluated
    predictions = Path(config.output) / "predictions.parquet"
    written = predictions.stat().st_mtime_ns
    assert json.dumps(run(config)) == json.dumps(report)
    assert predictions.stat().st_mtime_ns == written
    save_model(tmp_path / "model.safetensors", create_model("hiera_test_8x64"), {"classes": json.dumps(CLASSES)})
    weights = Path(config.init) / "model.safetensors"
    former = weights.read_bytes()
    weights.write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"holds scores of other weights or data \(weights_digest.*another output"):
        run(config)
    weights.write_bytes(former)


def test_what_cannot_be_scored_is_refused(
    evaluated: tuple[EvaluateConfig, dict[str, Any], int], tmp_path: Path
) -> None:
    config, _, _ = evaluated
    unlabelled = PreparedSet.num_clips
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PreparedSet,
            "num_clips",
            lambda prepared, split, labelled_only=False: 0 if labelled_only else unlabelled(prepared, split),
        )
        with pytest.raises(UserError, match=r"split=train: no clip of it has a label to compare with"):
            run(replace(config, output=str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"split=nosuch: .* has no such clips"):
        run(replace(config, split="nosuch", output=str(tmp_path / "out")))
    save_model(tmp_path / "model.safetensors", create_model("hiera_test_8x64"))
    with pytest.raises(UserError, match="has 8 classes that the classifier was not trained on"):
        run(replace(config, init=str(tmp_path)))


# `evaluate k400` with weights in the official format, against a plain loop over the official package on real clips.
#
# The loop shares no code with the commands but the prepared videos: frames by PyAV in order, SlowFast's formulas
# written out again, the official model with its own softmax. The model is shrunk; its weights are random.


FRAMES, SIZE, CLIPS = 16, 160, 6
SHRUNK: dict[str, Any] = {"embed_dim": 16, "stages": (1, 1, 2, 1), "input_size": (FRAMES, SIZE, SIZE)}
KEYS = [f"model_overrides.{key}={json.dumps(value)}" for key, value in SHRUNK.items()]


@pytest.fixture(scope="module")
def prepared(real_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real clips of Kinetics classes, every one in the split `train`."""
    folder = tmp_path_factory.mktemp("official")
    kinetics = set(read_class_list("kinetics400"))
    with (real_clips / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in kinetics and row["path"].startswith("actions/")]
    rows = sorted(rows, key=lambda row: int(row["frames"]))[:CLIPS]
    assert len(rows) == CLIPS
    (folder / "videos").mkdir()
    for row in rows:
        shutil.copy(real_clips / row["path"], folder / "videos")
    lines = ["path,label", *(f"{Path(row['path']).name},{row['label']}" for row in rows)]
    (folder / "videos" / "annotations.csv").write_text("\n".join(lines) + "\n")
    keys = [f"source={folder / 'videos'}", f"output={folder / 'set'}", "classes=kinetics400", "val_share=0"]
    report = prepare.run(load_config(prepare.PrepareConfig, "prepare", [*keys, "workers=2", "tracking.uri=none"]))
    assert report["clips"] >= CLIPS
    return folder / "set"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A shrunk official model whose scores are far from flat, and its file."""
    model = official_model("hiera_base_16x224", **SHRUNK).eval()
    with torch.no_grad():
        model.head.projection.weight.mul_(10)
    path = tmp_path_factory.mktemp("weights") / "hiera_base_16x224.pth"
    torch.save({"model_state": model.state_dict()}, path)
    return model, path


@torch.no_grad()
def plain_loop(model: torch.nn.Module, prepared: Path) -> dict[int, np.ndarray]:
    """Clip → mean of the official model's scores over five clips and three crops."""
    scores = {}
    for shard in (prepared / "shards").rglob("*.parquet"):
        for clip in pq.read_table(shard).to_pylist():
            with av.open(io.BytesIO(clip["video"])) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            views = [view for number in range(5) for view in three_views(frames, clip["fps"], number)]
            scores[clip["clip_id"]] = torch.cat([model(view) for view in views]).mean(0).numpy()
    return scores


def three_views(frames: list[np.ndarray], fps: float, number: int) -> list[torch.Tensor]:
    """SlowFast's clip ``number`` of five, 4 frames apart at 30 a second: three squares along the long side."""
    span = FRAMES * 4 * fps / 30
    start = number * int(max(0, len(frames) - span) // 4)
    places = np.linspace(start, start + max(0, span - 1), FRAMES).clip(0, len(frames) - 1).astype(int)
    clip = np.stack([frames[place] for place in places])
    height, width = clip.shape[1:3]
    side, views = min(height, width), []
    for share in (0, 0.5, 1):
        top, left = int((height - side) * share), int((width - side) * share)
        squares = clip[:, top : top + side, left : left + side]
        resized = np.stack([cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for square in squares])
        views.append(torch.from_numpy((resized.transpose(3, 0, 1, 2)[None] / 255 - 0.45) / 0.225).float())
    return views


@pytest.mark.clips
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_official_weights_score_as_in_the_official_package(
    prepared: Path, official: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    model, path = official
    keys = ["k400", f"init={path}", f"data={prepared}", f"output={tmp_path / 'out'}", "split=train"]
    more = ["model=hiera_base_16x224", *KEYS, "tracking.uri=none", "workers=1", "decode_workers=1"]
    report = run(load_config(EvaluateConfig, "evaluate", [*keys, *more]))
    expected, names = plain_loop(model, prepared), read_class_list("kinetics400")
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert report["videos_scored"] == len(rows) == len(expected)
    assert max(scores.max() for scores in expected.values()) > 0.05  # not flat: 1e-4 says something
    for row in rows:
        scores = expected[row["clip_id"]]
        assert row["views"] == 15
        assert row["predicted"] == names[scores.argmax()]
        assert row["scores"] == pytest.approx([scores[names.index(name)] for name in row["labels"]], abs=1e-4)
    assert (tmp_path / "out" / "confused_pairs.png").read_bytes().startswith(b"\x89PNG")
