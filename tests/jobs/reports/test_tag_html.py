"""The report of a tagging run stands alone, tells everything, and is safe against the names in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from jobs.reports.tag_html import VIDEO_COLUMNS, page
from jobs.reports.tag_thumbnails import FRAMES, choose_videos, gallery, strip_picture
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.decode.config import DecodeConfig
from pipeline.tagging.schema import VIDEO_SCHEMA

REPORT = {
    "videos": 3,
    "windows": 12,
    "windows_per_second": 3.5,
    "seconds": 3.4,
    "failed_videos": 1,
    "chunks_done_again": 0,
}


def _video(uri: str, labels: dict[str, float], **more: Any) -> dict[str, Any]:
    spans = [
        {"label": label, "start_seconds": 0.0, "end_seconds": 1.0, "score": score} for label, score in labels.items()
    ]
    named = {"labels": list(labels), "scores": list(labels.values()), "spans": spans}
    return {
        "uri": uri,
        "duration_seconds": 2.0,
        "windows": 2,
        "status": "ok",
        "error_class": None,
        "message": "",
        **named,
        **more,
    }


def _table(*videos: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(videos), schema=pa.schema([VIDEO_SCHEMA.field(name) for name in VIDEO_COLUMNS]))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("videos")
    paths = [str(video.path) for video in render_motion_videos(folder, 2, seed=1, size=64, num_frames=50)]
    return _table(
        _video(paths[0], {"moves <left>": 0.75, "turns": 0.25}),
        _video(paths[1], {"turns": 0.5}, status="partial", error_class="timeout", message="10 s"),
        _video("s3://bucket/<script>.mp4", {}, status="failed", error_class="damaged", message="a & b"),
    )


def test_the_page_needs_nothing_and_tells_everything(videos: pa.Table) -> None:
    shown = list(gallery(choose_videos(videos, 10), DecodeConfig()))
    assert [item.video["labels"][0] for item in shown] == ["moves <left>", "turns"]
    text = page("Tags", REPORT, videos, shown, {"source": "https://user:secret@host/x"}).decode()
    assert "secret" not in text
    assert not re.search(r"<script|<link|src='(?!data:)|url\(|@import", text)
    for told in ("moves &lt;left&gt;", "<b>0.75</b>", "3.50", "&lt;script&gt;.mp4", "a &amp; b", "timeout", "failed 1"):
        assert told in text
    picture = cv2.imdecode(np.frombuffer(shown[0].strip, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (120, FRAMES * 164 - 4, 3)


def test_every_label_has_its_turn(videos: pa.Table) -> None:
    many = _table(*(_video(f"{n}.mp4", {"common": 0.9 - n / 100}) for n in range(9)), _video("z.mp4", {"rare": 0.1}))
    assert [video["uri"] for video in choose_videos(many, 3)] == ["0.mp4", "z.mp4", "1.mp4"]
    assert choose_videos(videos.slice(0, 0), 3) == []


def test_a_video_that_is_gone_has_no_picture() -> None:
    (shown,) = gallery(choose_videos(_table(_video("/nowhere/gone.mp4", {"a": 1.0})), 1), DecodeConfig())
    assert shown.strip == b""
    assert "no picture" in page("Tags", REPORT, _table(shown.video), [shown], {}).decode()  # type: ignore[arg-type]


@pytest.mark.faults
def test_a_real_browser_shows_it(videos: pa.Table, tmp_path: Path) -> None:
    """Headless Chromium: the pictures are there, in their colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.fail("no chromium or google-chrome on the path; on Debian: apt-get install chromium")
    red = strip_picture(np.full((FRAMES, 120, 160, 3), (255, 0, 0), np.uint8))
    shown = [type(item)(item.video, red) for item in gallery(choose_videos(videos, 2), DecodeConfig())]
    (tmp_path / "report.html").write_bytes(page("Tags", REPORT, videos, shown, {}))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,1500"]
    command = [browser, *options, f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path}/report.html"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    seen = cv2.imread(str(tmp_path / "page.png"))
    assert seen is not None
    blue, green, red_part = (seen[:, :, channel].astype(int) for channel in range(3))
    assert ((red_part > 240) & (blue < 20) & (green < 20)).sum() > 2 * 300 * 50
