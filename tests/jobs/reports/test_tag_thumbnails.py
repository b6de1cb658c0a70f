"""Which videos the gallery shows, and their strips of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from jobs.reports.tag_thumbnails import FRAMES, choose_videos, gallery
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.decode.config import DecodeConfig


def _table(**labels: dict[str, float]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"uri": uri, "labels": list(scores), "scores": list(scores.values())} for uri, scores in labels.items()
    ]
    types = {"uri": pa.string(), "labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def test_every_label_has_its_turn() -> None:
    many = _table(**{f"{n}.mp4": {"common": 0.9 - n / 100} for n in range(9)}, **{"z.mp4": {"rare": 0.1}})
    assert [video["uri"] for video in choose_videos(many, 3)] == ["0.mp4", "z.mp4", "1.mp4"]
    assert choose_videos(_table(none={}), 3) == []


def test_a_strip_holds_frames_side_by_side(tmp_path: Path) -> None:
    (video,) = render_motion_videos(tmp_path, 1, seed=1, size=64, num_frames=50)
    (shown,) = gallery(choose_videos(_table(**{str(video.path): {"a": 1.0}}), 1), DecodeConfig())
    picture = cv2.imdecode(np.frombuffer(shown.strip, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (120, FRAMES * 164 - 4, 3)


def test_a_missing_video_has_no_picture() -> None:
    (shown,) = gallery(choose_videos(_table(**{"/missing/video.mp4": {"a": 1.0}}), 1), DecodeConfig())
    assert shown.strip == b""
