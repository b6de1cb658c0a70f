"""A video whose frames say their number."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.synthetic.motion_videos import encode
from tests.support.transcoding import frames_of


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "numbered.mp4"
    encode(path, frames_of(), 30)
    return path
