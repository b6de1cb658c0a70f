"""How many copies of real clips `duplicates` finds: encoded anew and smaller, cropped, beginning later.

The clips are those of `actions` below CLIPS; of every third one a copy of each kind joins the collection. The whole is
tagged without Ray with the encoder of `tests.benchmarks.finding_encoder`, which it trains where CACHE has none (UCF15
names the data), and grouped. A clip and its copies are the truth; everything else is different.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from jobs.duplicates.groups import Collection, grouped, read_collection, similar_pairs
from jobs.finding.windows import open_snapshot
from jobs.runs.tracking_config import TrackingConfig
from jobs.tag import TagConfig
from jobs.tag import run as tag
from jobs.tagging import job
from pipeline.decode.config import DecodeConfig, TimeView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.sampling import CropBox
from tests.benchmarks.finding_encoder import encoder_file
from tests.support.tag_here import runner_here

KINDS = ("encoded", "cropped", "shifted")
FPS, SECONDS, SIDE = 15, 8.0, 256
CROPPED_SHARE, SHIFT_SECONDS, QUANTIZER = 0.1, 0.7, "34"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Frames = npt.NDArray[np.uint8]


def run(quick: bool) -> dict[str, Any]:
    """Recall of each kind and precision, for several thresholds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = make_collection(Path(os.environ["CLIPS"]) / "actions", folder / "source", 12 if quick else 1000)
        output = tag_collection(folder, encoder_file())
        videos = read_collection(open_snapshot(output, None))
        return {f"min_similarity={least}": measured(videos, truth, least) for least in THRESHOLDS}


def make_collection(clips: Path, folder: Path, most: int) -> dict[str, tuple[str, str]]:
    """Links to the clips and, of every third, copies; path → (clip, kind)."""
    folder.mkdir(parents=True)
    truth = {}
    with IsolatedDecoder(DecodeConfig(deadline_seconds=60.0)) as decoder:
        for number, clip in enumerate(sorted(clips.iterdir())[:most]):
            (folder / clip.name).symlink_to(clip)
            truth[str(folder / clip.name)] = (clip.name, "original")
            for kind in KINDS if number % 3 == 0 else ():
                path = folder / f"{clip.stem}.{kind}.mp4"
                write_copy(path, copied_frames(decoder, clip, kind))
                truth[str(path)] = (clip.name, kind)
    return truth


def copied_frames(decoder: IsolatedDecoder, clip: Path, kind: str) -> Frames:
    """The frames of a copy, uint8 ``[T, H, W, 3]``."""
    info = decoder.probe(clip)
    share = CROPPED_SHARE if kind == "cropped" else 0.0
    top, left = int(info.height * share), int(info.width * share)
    box = CropBox(top, left, info.height - 2 * top, info.width - 2 * left)
    scale = SIDE / max(box.height, box.width)
    size = (int(box.height * scale) // 2 * 2, int(box.width * scale) // 2 * 2)
    start = SHIFT_SECONDS if kind == "shifted" else 0.0
    end = min(info.duration_seconds, SECONDS) - 1 / FPS
    return decoder.decode(clip, [TimeView(np.arange(start, max(end, start + 0.1), 1 / FPS), box, size)])[0]


def write_copy(path: Path, frames: Frames) -> None:
    """Encode as H.264 with visible loss."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(FPS), options={"crf": QUANTIZER, "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def tag_collection(folder: Path, weights: Path) -> str:
    """Tag ``folder/source``; the output."""
    with stages_here():
        tag(
            TagConfig(
                source=str(folder / "source"), init=str(weights), output=str(folder / "tag"),
                window_seconds=2.0, hop_seconds=1.0, embeddings=True, gallery_videos=0,
                tracking=TrackingConfig(uri="none"),
            )
        )  # fmt: skip
    return str(folder / "tag")


@contextmanager
def stages_here() -> Iterator[None]:
    """`tag` in this process, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "task_runner", runner_here)
        yield


def measured(videos: Collection, truth: dict[str, tuple[str, str]], least: float) -> dict[str, float]:
    """Copies that share a group with their clip, by kind, and the share of right ones among what is excluded."""
    rows = grouped(videos, similar_pairs(videos, least)).to_pylist()
    heads = {row["group"]: truth[row["uri"]][0] for row in rows if row["representative"]}
    right = [row["uri"] for row in rows if heads[row["group"]] == truth[row["uri"]][0]]
    excluded = [row for row in rows if not row["representative"]]
    wrong = sum(heads[row["group"]] != truth[row["uri"]][0] for row in excluded)
    kinds = {kind: [path for path, (_, made) in truth.items() if made == kind] for kind in KINDS}
    return {
        **{f"recall {kind}": len(set(right) & set(paths)) / len(paths) for kind, paths in kinds.items()},
        "precision": 1 - wrong / len(excluded) if excluded else 1.0,
        "excluded": len(excluded),
    }
