"""One open video, without a child."""

from __future__ import annotations

from pathlib import Path

from pipeline.decode.config import DecodeConfig
from pipeline.decode.video_file import Video
from tests.support.numbered import write_numbered


def test_a_pass_over_all_packets_tells_that_it_goes_on(tmp_path: Path) -> None:
    """In a long file without an index it takes minutes, before the first frame is decoded."""
    told: list[int] = []
    path = write_numbered(tmp_path / "v.mkv", 100)
    with Video(str(path), DecodeConfig(), lambda: told.append(1)) as video:
        assert len(video.times()) == 100
    assert len(told) == 3
