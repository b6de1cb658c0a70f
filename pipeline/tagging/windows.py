"""The plan of a tagging job: windows of time, units of consecutive windows, numbered chunks. Pure functions.

A *window* is a time span that gets a row of tags. A *unit* is a run of consecutive windows of one video, the row of
the plan. A *chunk* is a fixed number of windows, whatever videos they come from: its size is a multiple of the model's
batch, so batches are full across videos, and its number names the one file that it becomes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import OK, clip_id

# Rows of videos without windows (the probe failed, deleted from the source) are cheap: many to a file.
FAILURES_PER_CHUNK = 4096

PROBED_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_version", pa.string(), nullable=False),
        pa.field("duration_seconds", pa.float64()),
        pa.field("num_frames", pa.int64()),
        pa.field("fps", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""One video as the probe found it; ``status`` is ``ok`` or one word for the error, ``message`` describes it."""

UNIT_SCHEMA = pa.schema(
    [
        pa.field("unit_id", pa.int64(), nullable=False),
        pa.field("chunk", pa.int64(), nullable=False),
        pa.field("first_window", pa.int64(), nullable=False),
        pa.field("num_windows", pa.int64(), nullable=False),
        *PROBED_SCHEMA,
    ]
)
"""One unit of the plan; ``num_windows`` is 0 for a video that has none (see ``status``)."""


@dataclass(frozen=True)
class WindowGrid:
    """How a video is cut into windows."""

    window_seconds: float
    """Length of a window."""
    hop_seconds: float
    """From the start of one window to the start of the next."""

    def count(self, duration_seconds: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Windows that cover videos of these lengths: at least one each.

        The last one is moved back to end with the video instead of being cut short, so that every window of a
        video that is long enough spans ``window_seconds`` and looks to the model like those it was trained on.
        """
        beyond_first = np.maximum(np.asarray(duration_seconds, np.float64) - self.window_seconds, 0.0)
        # Without the slack, a rounding error of 1e-16 s would add a window that repeats the one before.
        return 1 + np.ceil(beyond_first / self.hop_seconds - 1e-6).clip(min=0).astype(np.int64)

    def span(self, window_index: int, duration_seconds: float) -> tuple[float, float]:
        """Start and end of one window, in seconds."""
        start = min(window_index * self.hop_seconds, max(duration_seconds - self.window_seconds, 0.0))
        return start, min(start + self.window_seconds, duration_seconds)


def video_id(uri: str, content_version: str) -> int:
    """A video's int64: the same for the same content, another after the object changed."""
    return clip_id(uri, content_version, 0.0, math.inf)


def window_times(span_seconds: tuple[float, float], frame_seconds: float, num_frames: int) -> npt.NDArray[np.float64]:
    """When to look into a window, float64 ``[T]`` in seconds: evenly from its start to the start of its last frame.

    At a constant frame rate these are the frames of the uniform test clip, ``linspace(first, first + span - 1)``
    truncated (SlowFast); a window shorter than ``num_frames`` frames repeats some.

    Args:
        frame_seconds: how long a frame of the video lasts on average.
        num_frames: T.
    """
    return np.linspace(span_seconds[0], max(span_seconds[1] - frame_seconds, span_seconds[0]), num_frames)


def plan_units(probed: pa.Table, grid: WindowGrid, windows_per_chunk: int) -> pa.Table:
    """Probed videos → units of `UNIT_SCHEMA`, ordered by chunk.

    Every window of every ``ok`` video is in exactly one unit; every other video is one unit without windows. A video
    that crosses the border of a chunk becomes two units. Example with 4 windows per chunk and videos of 3, 6 and 1
    windows: chunk 0 = A[0:3] B[0:1], chunk 1 = B[1:5], chunk 2 = B[5:6] C[0:1].
    """
    usable = np.asarray([status == OK for status in probed["status"].to_pylist()], bool)
    counts = grid.count(probed["duration_seconds"].fill_null(0.0).to_numpy()) * usable
    good, first_window, num_windows, chunk = _cut_at_chunks(counts, windows_per_chunk)
    bad = np.flatnonzero(~usable)
    first_free_chunk = -(-int(counts.sum()) // windows_per_chunk)
    zeros = np.zeros(len(bad), np.int64)
    columns = {
        "chunk": np.concatenate([chunk, first_free_chunk + np.arange(len(bad)) // FAILURES_PER_CHUNK]),
        "first_window": np.concatenate([first_window, zeros]),
        "num_windows": np.concatenate([num_windows, zeros]),
    }
    videos = probed.take(pa.array(np.concatenate([good, bad])))
    names = videos["uri"].to_pylist(), videos["content_version"].to_pylist()
    starts = columns["first_window"].astype(np.float64)
    spans = starts.tolist(), (starts + columns["num_windows"]).tolist()
    columns["unit_id"] = np.fromiter(map(clip_id, *names, *spans), np.int64, len(videos))
    table = pa.table({**columns, **{name: videos[name] for name in PROBED_SCHEMA.names}})
    return table.select(UNIT_SCHEMA.names).cast(UNIT_SCHEMA)


def _cut_at_chunks(counts: npt.NDArray[np.int64], windows_per_chunk: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Windows per video → (video row, first window, windows, chunk) per unit."""
    ends = np.cumsum(counts)
    starts = ends - counts
    first_chunk = starts // windows_per_chunk
    pieces = np.where(counts > 0, (ends - 1) // windows_per_chunk - first_chunk + 1, 0)
    row = np.repeat(np.arange(len(counts)), pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    chunk = first_chunk[row] + piece
    begin = np.maximum(starts[row], chunk * windows_per_chunk)
    end = np.minimum(ends[row], (chunk + 1) * windows_per_chunk)
    return row, begin - starts[row], end - begin, chunk
