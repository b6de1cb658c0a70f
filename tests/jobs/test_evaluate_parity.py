"""`evaluate k400` with weights in the official format, against a plain loop over the official package on real clips.

The loop shares no code with the commands but the prepared videos: frames by PyAV in order, SlowFast's formulas written
out again, the official model with its own softmax. The model is shrunk; its weights are random.
"""

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
import pyarrow.parquet as pq
import pytest
import torch

from jobs import prepare
from jobs.core.config import load_config
from jobs.evaluate import EvaluateConfig, run
from pipeline.manifest.formats import read_class_list
from tests.support.official import official_model

pytestmark = [
    pytest.mark.clips,
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(600),
]

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
