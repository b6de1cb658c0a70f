"""Decoding of training views: prepared clips against the loaders in use, isolation, the Ray chain, one stream's rate.

All on the H.264 MP4s of `CLIPS` (a folder of real clips; without it, on rendered ones), views of 16 frames at 224 px.
The baseline is decord on the original files, one view a call, as VideoMAE and SlowFast do. Ratios above 1: faster than
what they are compared with. Times of decoding are CPU seconds of parent and child, so that other work on the machine
counts little; times of the chains are wall seconds on two cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.datasets import train as stages
from pipeline.datasets.train import iter_micro_batches, stream_execution_options, training_stream
from pipeline.decode.child import render
from pipeline.decode.config import Backend, DecodeConfig, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.decode.video_file import Video
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.sampling import ViewConfig, random_resized_crop, training_indices
from pipeline.shards.reader import PreparedSet, clip_index, open_prepared, read_shard
from pipeline.shards.writer import StoreConfig
from pipeline.transcode.config import Mode, TranscodeConfig
from tests.support.prepared import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
VIEW = ViewConfig()
TICKS = os.sysconf("SC_CLK_TCK")
MICRO_BATCH = 8
BACKENDS: tuple[Backend, ...] = ("auto", "decord")


def run(quick: bool) -> dict[str, Any]:
    """Figures by name; see the module's docstring for what they are of."""
    rounds = 3 if quick else 6
    with tempfile.TemporaryDirectory() as folder, _ray():
        originals = Path(folder) / "originals"
        collect_videos(originals)
        prepared = {mode: _prepare(originals, Path(folder) / mode, mode) for mode in ("transcode", "passthrough")}
        videos = {mode: _videos(a_set) for mode, a_set in prepared.items()}
        files = [str(path) for path in sorted(originals.iterdir())]
        figures: dict[str, Any] = {"videos": len(files)}
        figures |= _decoding(files, videos, rounds)
        figures |= _isolation(files, rounds)
        figures |= _chain(prepared["transcode"], rounds)
        figures |= _read_videos(files, prepared["transcode"], rounds)
        figures |= _stream_rate(prepared["transcode"], quick)
    return figures


def collect_videos(folder: Path) -> None:
    """Kinetics-style clips: H.264 MP4s of 4 to 31 s, at most 700 pixels wide or high."""
    folder.mkdir()
    clips = Path(os.environ.get("CLIPS", REPOSITORY.parent / "shared" / "clips")) / "actions"
    for path in sorted(clips.glob("*.mp4")):
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            seconds = stream.frames / float(stream.average_rate or 1)
            if stream.codec.name == "h264" and 4 < seconds < 31 and max(stream.width, stream.height) < 700:
                shutil.copy(path, folder / path.name)
    if not any(folder.iterdir()):
        render_motion_videos(folder, 16, seed=0)
        for path in folder.glob("*.webm"):
            path.unlink()


def _prepare(source: Path, output: Path, mode: Mode) -> PreparedSet:
    settings = PrepareSettings(
        ManifestConfig(val_share=0), TranscodeConfig(mode=mode), DecodeConfig(), StoreConfig(), seed=0
    )
    prepare(str(source), str(output), settings)
    return open_prepared(str(output))


class _Clip:
    """One video in memory or on disk, and views drawn from it."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.draw = np.random.default_rng(row["clip_id"])

    def views(self, count: int) -> list[FrameView]:
        row = self.row
        return [
            FrameView(
                training_indices(row["num_frames"], row["fps"], VIEW, self.draw),
                random_resized_crop(row["height"], row["width"], VIEW.crop_scale, VIEW.crop_aspect, self.draw),
                (VIEW.size, VIEW.size),
            )
            for _ in range(count)
        ]


def _videos(prepared: PreparedSet) -> list[_Clip]:
    index = clip_index(prepared)
    uris = [index.shard_uri(prepared.uri, number) for number in range(len(index.files))]
    table = pa.concat_tables([read_shard(uri) for uri in uris])
    return [_Clip(row) for row in table.to_pylist()]


def _decoding(files: Sequence[str], videos: dict[str, list[_Clip]], rounds: int) -> dict[str, Any]:
    """Milliseconds of CPU a view, and how many times faster than the baseline."""
    baseline = _cpu_ms(lambda: _decord_calls(files), rounds, views=len(files))
    figures: dict[str, Any] = {"decord on the originals, one view a call": {"ms a view": baseline, "times faster": 1.0}}
    for mode, clips in videos.items():
        for backend in BACKENDS:
            for views in (1, 4):
                with IsolatedDecoder(DecodeConfig(backend=backend)) as decoder:
                    milliseconds = _cpu_ms(_decode_all(decoder, clips, views), rounds, len(clips) * views, decoder)
                figures[f"{mode}, {backend}, {views} view{'s' * (views > 1)} a clip"] = {
                    "ms a view": milliseconds,
                    "times faster": baseline / milliseconds,
                }
    return figures


def _decord_calls(files: Sequence[str]) -> None:
    for path in files:
        reader = decord.VideoReader(path, num_threads=1)
        indices = training_indices(len(reader), reader.get_avg_fps(), VIEW, np.random.default_rng())
        reader.get_batch(indices).asnumpy()


def _decode_all(decoder: IsolatedDecoder, clips: Sequence[_Clip], views: int) -> Callable[[], None]:
    batch = np.empty((views, VIEW.num_frames, VIEW.size, VIEW.size, 3), np.uint8)

    def decode() -> None:
        for clip in clips:
            decoder.decode(clip.row["video"], clip.views(views), list(batch))

    return decode


def _isolation(files: Sequence[str], rounds: int) -> dict[str, Any]:
    """The same decoding in this process and in the child: the share of throughput that the isolation costs."""
    config = DecodeConfig(backend="pyav")
    view = FrameView(np.arange(16) * 3, None, (VIEW.size, VIEW.size))
    output = np.empty((16, VIEW.size, VIEW.size, 3), np.uint8)

    def inside() -> None:
        for path in files:
            with Video(path, config) as video:
                render(video, [view], [output])

    with IsolatedDecoder(config) as decoder:

        def isolated() -> None:
            for path in files:
                decoder.decode(path, [view], [output])

        direct = _cpu_ms(inside, rounds, len(files))
        child = _cpu_ms(isolated, rounds, len(files), decoder)
    return {"isolation: share of throughput lost": 1 - direct / child}


def _chain(prepared: PreparedSet, rounds: int) -> dict[str, Any]:
    """Views a second of the Ray chain to NumPy batches, against two processes in a bare loop, in steady state."""
    micro_batches = 16 * rounds
    stream = _stream(prepared, micro_batches, ViewConfig(repeats=4))
    chain = _steady_rate(iter_micro_batches(stream)) * MICRO_BATCH
    clips = _videos(prepared)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rates = pool.map(_bare_rate, [([clip.row for clip in clips], rounds)] * 2)
    return {
        "views/s, Ray chain with two decoders": chain,
        "views/s, bare loop in two processes": sum(rates),
        "Ray chain against bare loop": chain / sum(rates),
    }


def _bare_rate(job: tuple[list[dict[str, Any]], int]) -> float:
    rows, rounds = job
    with IsolatedDecoder(DecodeConfig()) as decoder:
        decode = _decode_all(decoder, [_Clip(row) for row in rows], 4)
        decode()
        started = time.perf_counter()
        for _ in range(rounds):
            decode()
        return rounds * len(rows) * 4 / (time.perf_counter() - started)


def _read_videos(files: Sequence[str], prepared: PreparedSet, rounds: int) -> dict[str, Any]:
    """Seconds for 16 frames of every clip by Ray Data's own reader, against our chain over the same number of clips."""
    started = time.perf_counter()
    rows = ray.data.read_videos(list(files), include_paths=True).map_batches(_sixteenths, batch_format="numpy").count()
    theirs = (time.perf_counter() - started) / len(files)
    micro_batches = 4 * rounds
    started = time.perf_counter()
    for _ in iter_micro_batches(_stream(prepared, micro_batches, VIEW)):
        pass
    ours = (time.perf_counter() - started) / (micro_batches * MICRO_BATCH)
    return {"ray.data.read_videos": {"ms a view": theirs * 1e3, "frames kept": rows}, "times faster": theirs / ours}


def _sixteenths(batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Every 16th frame: the reader gives all frames, one a row."""
    return {"frame": batch["frame"][::16]}


def _stream_rate(prepared: PreparedSet, quick: bool) -> dict[str, Any]:
    """Blocks a second that one stream deals out when decoding costs nothing but a sleep of 5 ms."""
    decode = stages.DecodeMicroBatches
    stages.DecodeMicroBatches = _SleepingDecoder  # type: ignore[misc]
    try:
        stream = _stream(prepared, 200 if quick else 1000, ViewConfig(repeats=4), decoders=4)
        return {"blocks/s of one stream": _steady_rate(iter_micro_batches(stream))}
    finally:
        stages.DecodeMicroBatches = decode  # type: ignore[misc]


class _SleepingDecoder(stages.DecodeMicroBatches):
    """Sleeps instead of decoding."""

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(0.005)
        return stages._MicroBatch(stages._runs(table), self.view).table()


def _stream(prepared: PreparedSet, micro_batches: int, view: ViewConfig, decoders: int = 2) -> ray.data.Dataset:
    stream = training_stream(
        prepared,
        view,
        seed=0,
        micro_batch=MICRO_BATCH,
        start_position=0,
        stop_position=micro_batches * MICRO_BATCH,
        concurrency=decoders,
    )
    stream.context.execution_options = stream_execution_options(2**30)
    return stream


def _steady_rate(batches: Iterator[Any]) -> float:
    """Items a second, without the start and the first quarter."""
    times = [time.perf_counter() for _ in batches]
    first = len(times) // 4
    return (len(times) - 1 - first) / (times[-1] - times[first])


def _cpu_ms(work: Callable[[], None], rounds: int, views: int, decoder: IsolatedDecoder | None = None) -> float:
    """Median over rounds of CPU milliseconds a view, this process and the decoder's child together."""
    work()
    spent = []
    for _ in range(rounds):
        before = time.process_time() + _child_seconds(decoder)
        work()
        spent.append(time.process_time() + _child_seconds(decoder) - before)
    return statistics.median(spent) / views * 1e3


def _child_seconds(decoder: IsolatedDecoder | None) -> float:
    if decoder is None or decoder._child is None:
        return 0.0
    fields = Path(f"/proc/{decoder._child.process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
