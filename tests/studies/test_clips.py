"""Clips of a folder: cut around their centre, decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.sampling import CropBox
from tests.studies import clips as clips_module
from tests.studies.clips import Cut, crop_box, read_clips


@pytest.mark.parametrize(
    ("centre", "box"),
    [
        ((80.0, 60.0), CropBox(40, 60, 40, 40)),
        ((5.0, 119.0), CropBox(80, 0, 40, 40)),  # moved inside the picture
        (None, CropBox(40, 60, 40, 40)),
    ],
)
def test_the_square_lies_around_the_centre_inside_the_picture(centre: tuple[float, float] | None, box: CropBox) -> None:
    assert crop_box(120, 160, centre, Cut(frames=8, box=40, side=20)) == box


def test_without_a_box_it_is_the_middle_square() -> None:
    assert crop_box(120, 160, None, Cut(frames=8, box=0, side=20)) == CropBox(0, 20, 120, 120)


def test_clips_are_decoded_once_and_their_labels_and_splits_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = render_motion_videos(tmp_path / "data", 4, seed=0, size=64, num_frames=8)
    rows = [
        f"{Path(video.path).relative_to(tmp_path / 'data')},{video.label},train,{n}" for n, video in enumerate(videos)
    ]
    (tmp_path / "data" / "list.csv").write_text("path,label,split,source_video\n" + "\n".join(rows) + "\n")
    cut = Cut(frames=10, box=0, side=32)
    first = read_clips(tmp_path / "data", "list.csv", None, cut, tmp_path / "cache")
    assert first.frames.shape == (4, 10, 32, 32, 3)
    assert first.frames.std() > 0
    assert np.array_equal(first.frames[:, 8], first.frames[:, 7])  # behind the end the last frame repeats
    assert [first.classes[label] for label in first.labels] == [video.label for video in videos]
    assert list(first.of_split("train")) == [0, 1, 2, 3]
    monkeypatch.setattr(clips_module, "IsolatedDecoder", None)
    assert np.array_equal(read_clips(tmp_path / "data", "list.csv", None, cut, tmp_path / "cache").frames, first.frames)
