"""Preparing: what each way of storing costs and saves, damage found per codec, planning, memory on long footage.

On the real clips of `CLIPS` (without it, on rendered ones). Times are CPU seconds, so that other work on the machine
counts little. A mutated file counts as damaged when its decoded frames differ from the original's.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from jobs.synthetic.motion_videos import Rendering, draw_frames, draw_motion, encode, render_motion_videos
from pipeline.decode.child import render
from pipeline.decode.config import DecodeConfig, DecodeError, FrameView
from pipeline.decode.video_file import Video
from pipeline.transcode.config import StoredClip, TranscodeConfig
from pipeline.transcode.h264_encoder import scaled_frame
from pipeline.transcode.transcode import process
from pipeline.transcode.transcoder import IsolatedTranscoder

REPOSITORY = Path(__file__).resolve().parents[2]
WAYS = {
    "transcode": TranscodeConfig(),
    "transcode, crf 26": TranscodeConfig(crf=26),
    "transcode, GOP 64": TranscodeConfig(gop=64),
    "transcode, 7.5 frames/s": TranscodeConfig(target_fps=7.5),
    "transcode, short side 128": TranscodeConfig(short_side=128),
    "passthrough": TranscodeConfig(mode="passthrough"),
}
VIEWS_A_CLIP = 4
DAMAGE_BYTES = (50, 8, 1)
# Runs in a process of its own, so that its peak memory is its own.
PLAN = """
import pathlib, resource, sys, time
from jobs.prepare.command import PrepareConfig
from pipeline.prepare.run import plan_set
config = PrepareConfig(source=sys.argv[1], output=sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF)
started = time.perf_counter()
plan_set(config.source, config.output, config.settings)
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
# Not ru_maxrss: a new process begins with its parent's.
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(time.perf_counter() - started, cpu, int(status["VmHWM"].split()[0]) / 1024)
"""


def run(quick: bool) -> dict[str, Any]:
    """Figures by name; see the module's docstring for what they are of."""
    with tempfile.TemporaryDirectory() as folder:
        files = _clips(Path(folder), 6 if quick else 20)
        figures: dict[str, Any] = {"videos": len(files)}
        figures |= {name: _way(files, config) for name, config in WAYS.items()}
        figures |= _damage_found(Path(folder), files, 1 if quick else 5)
        figures |= _planning(Path(folder), 500_000 if quick else 10_000_000)
        figures |= _long_footage(Path(folder), 60 if quick else 900)
    return figures


def _clips(folder: Path, wanted: int) -> list[Path]:
    """Clips of up to 31 s from every container that there is."""
    clips = Path(os.environ.get("CLIPS", REPOSITORY.parent / "shared" / "clips"))
    found = [path for name in ("actions", "webm") for path in sorted((clips / name).glob("*.*")) if _is_short(path)]
    if not found:
        found = [video.path for video in render_motion_videos(folder / "rendered", wanted, 0)]
    return found[:: max(1, len(found) // wanted)][:wanted]


def _is_short(path: Path) -> bool:
    with av.open(str(path), metadata_errors="replace") as container:
        return (container.duration or 0) / av.time_base < 31 and container.streams.video[0].width < 900


class _Stored(NamedTuple):
    clip: StoredClip
    content: bytes
    cpu_seconds: float


def _way(files: list[Path], config: TranscodeConfig) -> dict[str, float]:
    """Bytes against the original's, CPU to store a minute of video, CPU to decode a view, quality."""
    stored = [_store(path, config) for path in files]
    seconds = sum(one.clip.end_seconds for one in stored)
    figures = {
        "bytes": sum(len(one.content) for one in stored) / sum(path.stat().st_size for path in files),
        "CPU s a minute": 60 * sum(one.cpu_seconds for one in stored) / seconds,
        "ms a view": 1e3 * float(np.mean([_decode_seconds(one) for one in stored])),
    }
    if config.mode == "transcode" and config.target_fps is None:
        figures["PSNR dB"] = float(np.mean([_psnr(path, one) for path, one in zip(files, stored, strict=True)]))
    return figures


def _store(path: Path, config: TranscodeConfig) -> _Stored:
    outputs: list[Any] = []
    started = time.process_time()
    with Video(str(path), DecodeConfig()) as video:
        process(video, config, outputs.append)
    cpu_seconds = time.process_time() - started
    return _Stored(outputs[0], outputs[0].video or path.read_bytes(), cpu_seconds)


def _decode_seconds(stored: _Stored) -> float:
    """CPU of views of 16 frames, 7.5 a second, at random starts, one view an opening."""
    clip = stored.clip
    stride = max(1, round(clip.fps / 7.5))
    draw = np.random.default_rng(0)
    output = np.empty((16, 224, 224, 3), np.uint8)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(stored.content)
        file.flush()
        started = time.process_time()
        for _ in range(VIEWS_A_CLIP):
            first = draw.integers(0, max(1, clip.num_frames - 16 * stride))
            indices = np.minimum(first + stride * np.arange(16), clip.num_frames - 1)
            with Video(file.name, DecodeConfig()) as video:
                render(video, [FrameView(indices, None, (224, 224))], [output])
    return (time.process_time() - started) / VIEWS_A_CLIP


def _psnr(path: Path, stored: _Stored) -> float:
    """Mean over frames of the PSNR in RGB against the original's frames, scaled in the same way."""
    values = []
    with Video(str(path), DecodeConfig()) as video, av.open(io.BytesIO(stored.content)) as container:
        size, orientation = (stored.clip.width, stored.clip.height), video.orientation
        for number, (original, kept) in enumerate(zip(video.frames(), container.decode(video=0), strict=False)):
            if number % 8 == 0:
                values.append(_frame_psnr(scaled_frame(original, size, orientation), kept))
    return float(np.mean(values))


def _frame_psnr(one: Any, other: Any) -> float:
    pictures = [frame.to_ndarray(format="rgb24").astype(np.float32) for frame in (one, other)]
    error = max(float(np.square(pictures[0] - pictures[1]).mean()), 1e-3)
    return float(10 * np.log10(255**2 / error))


def _damage_found(folder: Path, files: list[Path], tries: int) -> dict[str, Any]:
    """Of files with bytes changed behind the header whose frames differ, the share that prepare refuses."""
    draw = np.random.default_rng(0)
    found: dict[str, list[bool]] = defaultdict(list)
    config = TranscodeConfig(mode="passthrough")
    with IsolatedTranscoder(config, DecodeConfig(deadline_seconds=30)) as transcoder:
        for path in files[:: max(1, len(files) // 10)]:
            good = _frames(path)
            for changed in [size for size in DAMAGE_BYTES for _ in range(tries)]:
                mutated = folder / f"mutated{path.suffix}"
                mutated.write_bytes(_mutated(path.read_bytes(), changed, draw))
                if _differs(mutated, good):
                    found[f"{_codec(path)}, {changed} bytes"].append(_is_refused(transcoder, mutated))
    return {
        f"damage found, {kind}": {"share": float(np.mean(flags)), "files": len(flags)}
        for kind, flags in sorted(found.items())
    }


def _mutated(content: bytes, changed: int, draw: np.random.Generator) -> bytes:
    data = np.frombuffer(content, np.uint8).copy()
    places = draw.integers(len(data) // 10, len(data) * 9 // 10, changed)
    data[places] ^= draw.integers(1, 256, changed, np.uint8)
    return data.tobytes()


def _frames(path: Path) -> list[int]:
    """A digest of every frame, as far as the decoder goes."""
    digests = []
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            container.streams.video[0].codec_context.thread_count = 1
            digests += [hash(frame.to_ndarray().tobytes()) for frame in container.decode(video=0)]
    except (av.error.FFmpegError, ValueError):
        digests.append(0)
    return digests


def _differs(path: Path, good: list[int]) -> bool:
    return _frames(path) != good


def _codec(path: Path) -> str:
    with av.open(str(path), metadata_errors="replace") as container:
        return str(container.streams.video[0].codec_context.name)


def _is_refused(transcoder: IsolatedTranscoder, path: Path) -> bool:
    try:
        list(transcoder.process(path))
    except DecodeError:
        return True
    return False


def _planning(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds and memory to plan a CSV of so many labelled paths (shuffle, splits, class list, plan files)."""
    place = folder / "list.csv"
    schema = pa.schema([("path", pa.string()), ("label", pa.string())])
    with pyarrow.csv.CSVWriter(str(place), schema) as writer:
        for start in range(0, rows, 500_000):
            numbers = range(start, min(start + 500_000, rows))
            paths = [f"videos/part{number % 977:04d}/clip_number_{number:09d}_of_the_set.mp4" for number in numbers]
            writer.write_table(pa.table({"path": paths, "label": [f"class {n % 400}" for n in numbers]}, schema=schema))
    command = [sys.executable, "-c", PLAN, str(place), str(folder / "planned")]
    answer = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    wall, cpu, peak = (float(value) for value in answer.split()[-3:])
    place.unlink()
    shutil.rmtree(folder / "planned")
    return {f"planning {rows:,} rows": {"wall s": wall, "CPU s": cpu, "peak MiB": peak}}


def _long_footage(folder: Path, seconds: int) -> dict[str, Any]:
    """Peak memory of the child while footage is cut into clips: half of it, then all of it."""
    figures = {}
    for length in (seconds // 2, seconds):
        path = folder / f"long{length}.mp4"
        encode(path, _footage(length * 30), 30)
        clips, peak = 0, 0.0
        with IsolatedTranscoder(TranscodeConfig(clip_seconds=10), DecodeConfig(deadline_seconds=30)) as transcoder:
            for output in transcoder.process(path):
                clips += isinstance(output, StoredClip)
                peak = max(peak, _child_peak_mib())
        figures[f"{length} s of footage"] = {"clips": clips, "child peak MiB": peak}
    return figures


def _footage(frames: int) -> npt.NDArray[np.uint8]:
    """Small frames [frames, 64, 64, 3] that repeat after two seconds."""
    rng = np.random.default_rng(0)
    drawn = draw_frames([draw_motion("moves_right", 60, rng)], Rendering(0.5, 64, 60), rng)
    return np.resize(drawn, (frames, *drawn.shape[1:]))


def _child_peak_mib() -> float:
    """The largest resident size that a transcoding child of this process ever had."""
    peaks = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it ended while this loop ran
            continue
        if f"PPid:\t{os.getpid()}\n" in text and b"transcode_process" in command:
            peaks.append(int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) / 1024)
    return max(peaks)
