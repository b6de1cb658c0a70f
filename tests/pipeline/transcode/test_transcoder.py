"""Transcoding in a child: clips or one reason for every file, and a parent that outlives its child."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.synthetic.motion_videos import encode
from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.transcode.config import Damage, StoredClip, TranscodeConfig
from pipeline.transcode.transcoder import IsolatedTranscoder
from tests.support.hijacked_child import hijack, saying
from tests.support.numbered import write_numbered
from tests.support.transcoding import frames_of


@pytest.fixture(scope="module")
def transcoder() -> Iterator[IsolatedTranscoder]:
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig(deadline_seconds=30)) as transcoder:
        yield transcoder


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"this is no video, whatever its name says\n" * 50, "not_a_video"),
        ("absent.mp4", None, "missing"),
    ],
)
def test_refused_with_a_reason(
    transcoder: IsolatedTranscoder, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        list(transcoder.process(tmp_path / name))
    assert caught.value.reason == reason


def test_a_name_that_is_no_text(transcoder: IsolatedTranscoder, tmp_path: Path, video: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4"))
    shutil.copy(video, path)
    assert isinstance(list(transcoder.process(path))[-1], VideoInfo)


def test_truncated_and_audio_only(transcoder: IsolatedTranscoder, tmp_path: Path, video: Path) -> None:
    encode(tmp_path / "v.webm", frames_of(), 30)
    (tmp_path / "half.webm").write_bytes((tmp_path / "v.webm").read_bytes()[:-2000])
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reasons = {}
    for name in ("half.webm", "half.mp4", "audio.mp4"):
        with pytest.raises(DecodeError) as caught:
            list(transcoder.process(tmp_path / name))
        reasons[name] = caught.value.reason
    assert reasons == {"half.webm": "damaged", "half.mp4": "not_a_video", "audio.mp4": "no_video_stream"}
    assert isinstance(list(transcoder.process(video))[-1], VideoInfo)
    assert transcoder.children_lost == 0


@pytest.mark.parametrize(
    ("limit", "value"), [("max_pixels", 128 * 127), ("max_frames", 39), ("max_seconds", 1.0), ("max_bytes", 1000)]
)
def test_limits(video: Path, limit: str, value: float) -> None:
    limits = DecodeConfig(**{limit: value})  # type: ignore[arg-type]
    with IsolatedTranscoder(TranscodeConfig(), limits) as small, pytest.raises(DecodeError) as caught:
        list(small.process(video))
    assert caught.value.reason == limit


@pytest.mark.parametrize(("fault", "reason"), [(signal.SIGSTOP, "timeout"), (signal.SIGSEGV, "crashed")])
def test_a_child_that_hangs_or_dies_is_replaced(video: Path, fault: signal.Signals, reason: str) -> None:
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig(deadline_seconds=1.0)) as transcoder:
        assert isinstance(list(transcoder.process(video))[-1], VideoInfo)
        assert transcoder._child is not None
        os.kill(transcoder._child.process_id, fault)
        with pytest.raises(DecodeError) as caught:
            list(transcoder.process(video))
        assert caught.value.reason == reason
        assert isinstance(list(transcoder.process(video))[-1], VideoInfo)
        assert transcoder.children_lost == 1


@pytest.mark.clips
def test_all_real_clips_have_an_outcome(real_clips: Path, transcoder: IsolatedTranscoder) -> None:
    """The short ones here; the full set goes through the program itself."""
    outcomes = {}
    for path in sorted((*(real_clips / "trouble").iterdir(), *(real_clips / "unusual").iterdir())):
        if path.stat().st_size < 1_000_000:
            try:
                outcomes[path.name] = list(transcoder.process(path))[-1].num_frames  # type: ignore[union-attr]
            except DecodeError as error:
                outcomes[path.name] = error.reason
    assert outcomes["Zulko_moviepy__result.webm"] == "empty"
    assert outcomes["dmlc_decord__video_270.mov"] == 3
    assert sum(isinstance(outcome, int) for outcome in outcomes.values()) > 25
    assert transcoder.children_lost == 0


def test_hours_between_pictures_are_refused_before_they_are_stored(tmp_path: Path) -> None:
    """A few kilobytes would become 390,000 frames."""
    times = [*np.arange(100) / 25, 15_600.0]
    path = write_numbered(tmp_path / "bomb.mkv", len(times), times=times, b_frames=0)
    began = time.monotonic()
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig()) as transcoder, pytest.raises(DecodeError) as refusal:
        list(transcoder.process(path))
    assert refusal.value.reason == "max_repeated_frames"
    assert time.monotonic() - began < 10
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig(max_repeated_frames=2)) as strict:
        slides = write_numbered(tmp_path / "slides.mkv", 8, times=np.array([0, 1, 2, 3, 4, 5, 6, 40]) / 25, b_frames=0)
        with pytest.raises(DecodeError, match=r"is over max_repeated_frames=2$"):
            list(strict.process(slides))


def test_one_video_has_a_budget_of_cpu(video: Path) -> None:
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig(max_cpu_seconds=1e-3)) as transcoder:
        with pytest.raises(DecodeError) as refusal:
            list(transcoder.process(video))
        assert refusal.value.reason == "max_cpu_seconds"


INFO = VideoInfo(64, 48, 30.0, 60, 2.0, "h264", "mov", 0)
CLIP = StoredClip(0.0, 2.0, 64, 48, 30.0, 60, b"bytes")


@pytest.mark.parametrize(
    "messages",
    [
        [("done", CLIP)],
        [("output", INFO), ("done", CLIP)],
        [("output", INFO), ("done", INFO)],
        [("done", "pyav")],
        [("output", 1), ("done", INFO)],
        [("done", replace(INFO, width=0))],
        [("output", replace(CLIP, width=0)), ("done", INFO)],
        [("output", replace(CLIP, num_frames=0)), ("done", INFO)],
        [("output", replace(CLIP, end_seconds=-1.0)), ("done", INFO)],
        [("output", replace(CLIP, start_seconds=3.0)), ("done", INFO)],
        [("output", replace(CLIP, fps=float("nan"))), ("done", INFO)],
        [("output", Damage(1.0, 0.0, "")), ("done", INFO)],
    ],
)
def test_outputs_that_no_video_has_are_a_crash(tmp_path: Path, messages: list[tuple[str, object]]) -> None:
    with IsolatedTranscoder(TranscodeConfig(), DecodeConfig()) as transcoder:
        hijack(transcoder)
        with pytest.raises(DecodeError) as caught:
            list(transcoder.process(saying(tmp_path / "lie.mp4", *messages)))
        assert caught.value.reason == "crashed"
        assert transcoder.children_lost == 1
        told = saying(tmp_path / "truth.mp4", ("output", CLIP), ("output", Damage(0.0, 1.0, "why")), ("done", INFO))
        assert list(transcoder.process(told)) == [CLIP, Damage(0.0, 1.0, "why"), INFO]
