"""`python -m tests.support.golden_losses`: the loss curve of a fixed tiny run, kept beside this file.

Run it only when the curve is meant to change, and say why in the commit. `test_training` compares with it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow as pa

from jobs import pretrain
from jobs.core.config import load_config
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.training.steps.pretrain import PretrainConfig
from pipeline.schema import CLIP_SCHEMA
from pipeline.shards.writer import write_shard
from pipeline.storage.files import join, write_bytes

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS, GLOBAL_BATCH = 10, 4
CLIPS, TRAINING_CLIPS = 16, 13
TINY = [
    "view.frame_stride=1",
    f"global_batch={GLOBAL_BATCH}",
    "micro_batch=2",
    f"steps={STEPS}",
    "checkpoint.every_steps=2",
    "checkpoint.keep=9",
    "trace_samples=true",
    "decode_actors=1",
]
PRETRAIN = [
    "model=mae_hiera_test_8x64",
    "model_overrides.drop_path_rate=0.2",
    "mask_ratio=0.75",
    "workers=2",
    "precision=fp32",
    "zero_stage=1",
    "view.crop_scale=[0.7,1.0]",
    "view.repeats=2",
    "optimizer.learning_rate=2.56e-2",
    "optimizer.betas=[0.9,0.95]",
    "schedule.warmup_epochs=1",
    "picture_clips=2",
]


def write_tiny_set(folder: Path) -> str:
    """A prepared set of sixteen rendered videos of eight frames.

    Not by `jobs.prepare`: its clip ids, and so all draws, depend on where the videos lie.
    """
    videos = render_motion_videos(folder / "videos", CLIPS, seed=1, size=64, num_frames=8)
    rows = [
        {
            "clip_id": number,
            "uri": video.path.name,
            "start_seconds": 0.0,
            "end_seconds": 8 / 30,
            "label": video.label,
            "split": "train" if number < TRAINING_CLIPS else "val",
            "width": 64,
            "height": 64,
            "fps": 30.0,
            "num_frames": 8,
            "video": video.path.read_bytes(),
        }
        for number, video in enumerate(videos)
    ]
    output = str(folder / "set")
    shard = write_shard(output, "0.parquet", pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), 20_000)
    counts = {"clips": CLIPS}
    record = {"version": 1, "digest": "tiny", "classes": MOTION_CLASSES, "shards": [shard], "counts": counts}
    for place in (join(output, "versions", "0001.json"), join(output, "dataset.json")):
        write_bytes(place, json.dumps(record).encode())
    return output


def pretrain_config(data: str, output: Path, *more: str) -> PretrainConfig:
    """The fixed run."""
    arguments = [f"data={data}", f"output={output}", *PRETRAIN, *TINY, *more]
    return load_config(PretrainConfig, "pretrain", arguments)


def main() -> None:
    """Train and write the curve."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        pretrain.run(pretrain_config(write_tiny_set(Path(folder)), output, "tracking.uri=none"))
        lines = (output / "metrics.jsonl").read_text().splitlines()
    GOLDEN.write_text(json.dumps([json.loads(line)["loss"] for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
