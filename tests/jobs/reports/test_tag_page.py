"""The report of a tagging run stands alone, shows everything, and is safe against the names in it."""

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

from jobs.reports.tag_page import VIDEO_COLUMNS, page
from jobs.reports.tag_thumbnails import FRAMES, Shown, choose_videos, gallery, strip_picture
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.decode.config import DecodeConfig
from pipeline.tagging.schema import VIDEO_SCHEMA

REPORT = {
    "videos": 3,
    "windows": 12,
    "windows_per_second": 3.5,
    "seconds": 3.4,
    "failed_videos": 1,
    "attempts_lost": 0,
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


def test_the_page_needs_nothing_and_shows_everything(videos: pa.Table) -> None:
    shown = list(gallery(choose_videos(videos, 10), DecodeConfig()))
    assert [item.video["labels"][0] for item in shown] == ["moves <left>", "turns"]
    text = page("Tags", REPORT, videos, shown, {"source": "https://user:secret@host/x"}).decode()
    assert "secret" not in text
    assert not re.search(r"<script|<link|src=.(?!data:)|url\(|@import", text)
    for part in ("moves &lt;left&gt;", ">0.75<", "3.50", "&lt;script&gt;.mp4", "a &amp; b", "timeout", "failed 1"):
        assert part in text
    assert f'href="file://{shown[0].video["uri"]}"' in text


def test_a_hostile_name_is_no_link(videos: pa.Table) -> None:
    hostile = Shown(_video("javascript://x/%0Aalert(1)//'\"><script>", {"a": 1.0}), b"")
    text = page("Tags", REPORT, videos, [hostile], {}).decode()
    assert "<script" not in text
    assert "href=" not in text


def test_a_video_without_a_picture(videos: pa.Table) -> None:
    shown = Shown(videos.to_pylist()[0], b"")
    assert "no picture" in page("Tags", REPORT, videos, [shown], {}).decode()


def test_a_source_without_labels_or_failures() -> None:
    text = page("Tags", REPORT, _table(_video("a.mp4", {})), [], {}).decode()
    assert "Nothing: every window" in text
    assert "0 labels rank first" in text


@pytest.mark.faults
def test_a_real_browser_shows_it(videos: pa.Table, tmp_path: Path) -> None:
    """Headless Chromium: the pictures are shown, in their colours."""
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


def test_a_label_at_zero_is_not_shown(videos: pa.Table) -> None:
    shown = Shown(_video("/a.mp4", {"turns": 0.9, "rolls": 0.005, "jumps": 0.004}), b"")
    text = page("Tags", REPORT, _table(), [shown], {}).decode().partition("</style>")[2]
    assert text.count('class="lane"') == text.count('class="chip"') == 2
    assert "jumps" not in text.partition('class="lane"')[0]


def test_images_have_no_time_and_are_not_stretched() -> None:
    images = _table(_video("/pictures/a.jpg", {"sky": 0.75}, windows=1, duration_seconds=0.04))
    shown = Shown(images.to_pylist()[0], strip_picture(np.zeros((1, 120, 160, 3), np.uint8)))
    report = {**REPORT, "animations": 17}
    text = page("Tags of 3 images", report, images, [shown], {}, "image").decode()
    body = text.partition("</style>")[2]
    assert 'class="gallery images"' in body
    assert re.search(r"\.gallery\.images img[^}]*aspect-ratio: 160 / 120", text)
    for word in ("video<", "videos", "footage", "window", 'class="lane"', "Bars below"):
        assert word not in body, word
    assert "images per second" in body
    assert re.search(r"<strong>17</strong><span>animations, by their first frame<", body)
