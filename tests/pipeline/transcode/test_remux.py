"""Original bytes cut at key frames: nothing lost, nothing twice, every piece as long as it says."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from jobs.synthetic.motion_videos import paint_frame_numbers
from pipeline.transcode.config import StoredClip
from tests.support.numbered import write_numbered
from tests.support.transcoding import frames_of, numbers, run


def test_passthrough_cuts_at_key_frames(tmp_path: Path) -> None:
    long = np.concatenate([frames_of(64, 60, seed) for seed in (1, 2)])
    paint_frame_numbers(long)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        options = {"crf": "20", "g": "15", "keyint_min": "15", "sc_threshold": "0", "bf": "0"}
        stream = container.add_stream("libx264", rate=30, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for image in long:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    outputs, _ = run(tmp_path / "v.mp4", mode="passthrough", clip_seconds=1.2)
    clips = [clip for clip in outputs if isinstance(clip, StoredClip)]
    shown = [number for clip in clips for number in numbers(clip)]
    assert shown == list(range(120))
    assert [numbers(clip)[0] % 15 for clip in clips] == [0] * len(clips)
    assert len(clips) == 3


@pytest.mark.parametrize(("clip_seconds", "hop_seconds"), [(0.3, 0.1), (0.6, 0.4), (0.3, 0.8)])
def test_passthrough_tells_the_spans_that_it_stores(clip_seconds: float, hop_seconds: float, tmp_path: Path) -> None:
    """Key frames every 0.48 s: spans between the same ones are one piece, and a piece is as long as it says."""
    path = write_numbered(tmp_path / "v.mp4", 60, b_frames=0)
    outputs, _ = run(path, mode="passthrough", clip_seconds=clip_seconds, hop_seconds=hop_seconds)
    clips = [clip for clip in outputs if isinstance(clip, StoredClip)]
    assert len(clips) == len(outputs) > 2
    assert len({(clip.start_seconds, clip.end_seconds) for clip in clips}) == len(clips)
    for clip in clips:
        assert clip.num_frames == round(25 * (clip.end_seconds - clip.start_seconds))
