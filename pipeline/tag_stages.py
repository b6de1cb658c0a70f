"""The stages of the tagging chain that touch videos, as callable classes for Ray Data actors.

Legend: W windows of a batch, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.attempts import FATAL, Attempts
from pipeline.decode import IsolatedDecoder
from pipeline.decode_config import DecodeConfig, DecodeError, TimeView
from pipeline.sampling import center_crop
from pipeline.storage import StorageError, join, local_copy
from pipeline.windows import OK, PROBED_SCHEMA, WindowGrid, window_times

# Bounds of one request to the decoder, so that long videos fit in memory and large ones meet the deadline.
WINDOWS_PER_REQUEST = 16
PIXELS_PER_REQUEST = 300e6
# A second attempt at parts of the video helps against damaged frames, not against what hangs or kills the decoder.
HOPELESS = ("timeout", "crashed", "out_of_memory")
# A single frame without a rate has no duration of its own; a window must have some.
NOMINAL_FPS = 25.0
MISSING = "missing"
UNREADABLE = "unreadable"

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]


class ProbeVideos:
    """Videos of `PROBED_SCHEMA` → the same rows with what the probe found, or why it failed."""

    def __init__(self, decode: DecodeConfig) -> None:
        self.decoder = IsolatedDecoder(decode)

    def __call__(self, videos: pa.Table) -> pa.Table:
        rows = [row | self._probe(row["uri"]) for row in videos.to_pylist()]
        return pa.Table.from_pylist(rows, schema=PROBED_SCHEMA)

    def _probe(self, uri: str) -> dict[str, Any]:
        try:
            with local_copy(uri) as path:
                info = self.decoder.probe(path)
        except (DecodeError, StorageError) as error:
            status, message = failure(error)
            return {"status": status, "message": message}
        return {
            "duration_seconds": info.duration_seconds or info.num_frames / NOMINAL_FPS,
            "num_frames": info.num_frames,
            "width": info.width,
            "height": info.height,
        }


@dataclass(frozen=True)
class DecodedWindow:
    """One window with its frames, or without them and why."""

    unit: dict[str, Any]
    window_index: int
    frames: Frames | None
    status: str = OK
    message: str = ""


class DecodeWindows:
    """The units of one chunk → a row per window, in tables of exactly ``batch_size`` rows but for the last.

    Windows that cannot be decoded come last, with black frames, so that the batches before them stay full. With
    ``attempts_folder`` the attempts at every unit are written down there: what killed two workers is not tried again.
    """

    def __init__(
        self,
        decode: DecodeConfig,
        grid: WindowGrid,
        input_size: tuple[int, int, int],
        batch_size: int,
        attempts_folder: str | None = None,
    ) -> None:
        self.decoder = IsolatedDecoder(decode)
        self.grid = grid
        self.input_size = input_size
        self.batch_size = batch_size
        self.attempts_folder = attempts_folder

    def __call__(self, units: pa.Table) -> Iterator[dict[str, npt.NDArray[Any]]]:
        batch: list[DecodedWindow] = []
        failed: list[DecodedWindow] = []
        attempts = self._attempts(units)
        for unit in units.to_pylist():
            for window in self._windows(unit) if attempts is None else self._counted(unit, attempts):
                (batch if window.frames is not None else failed).append(window)
                if len(batch) == self.batch_size:
                    yield self._columns(batch)
                    batch = []
        rest = batch + failed
        for start in range(0, len(rest), self.batch_size):
            yield self._columns(rest[start : start + self.batch_size])

    def _attempts(self, units: pa.Table) -> Attempts | None:
        if self.attempts_folder is None or len(units) == 0:
            return None
        return Attempts(join(self.attempts_folder, f"{units['chunk'][0].as_py():06d}.json"))

    def _counted(self, unit: dict[str, Any], attempts: Attempts) -> Iterator[DecodedWindow]:
        """The windows of a unit, as one attempt at it; all failed when two were made before."""
        key = str(unit["unit_id"])
        try:
            with attempts.at(key):
                for window in self._windows(unit):
                    if window.status in FATAL and attempts.left(key):
                        attempts.give_up(key)
                    yield window
        except DecodeError as error:
            indices = range(unit["first_window"], unit["first_window"] + unit["num_windows"])
            yield from _all_failed(unit, indices, error)

    def _windows(self, unit: dict[str, Any]) -> Iterator[DecodedWindow]:
        indices = range(unit["first_window"], unit["first_window"] + unit["num_windows"])
        try:
            with local_copy(unit["uri"]) as path:
                size = self._windows_per_request(unit)
                for start in range(0, len(indices), size):
                    yield from self._request(path, unit, indices[start : start + size])
        except StorageError as error:
            yield from _all_failed(unit, indices, error)

    def _request(self, path: Path, unit: dict[str, Any], indices: Sequence[int]) -> Iterator[DecodedWindow]:
        """Decode some windows together; when that fails, one by one, to save those beside the damage."""
        try:
            clips = self.decoder.decode(path, [self._view(unit, index) for index in indices])
        except DecodeError as error:
            if error.reason in HOPELESS or len(indices) == 1:
                yield from _all_failed(unit, indices, error)
                return
            for index in indices:
                yield from self._request(path, unit, [index])
            return
        for index, frames in zip(indices, clips, strict=True):
            yield DecodedWindow(unit, index, frames)

    def _windows_per_request(self, unit: dict[str, Any]) -> int:
        pixels_per_second = unit["width"] * unit["height"] * unit["num_frames"] / unit["duration_seconds"]
        affordable = PIXELS_PER_REQUEST / (pixels_per_second * self.grid.hop_seconds)
        return max(1, min(WINDOWS_PER_REQUEST, int(affordable)))

    def _view(self, unit: dict[str, Any], index: int) -> TimeView:
        frames, height, width = self.input_size
        frame_seconds = unit["duration_seconds"] / unit["num_frames"]
        times = window_times(self.grid.span(index, unit["duration_seconds"]), frame_seconds, frames)
        return TimeView(times, crop=center_crop(unit["height"], unit["width"]), size=(height, width))

    def _columns(self, windows: Sequence[DecodedWindow]) -> dict[str, npt.NDArray[Any]]:
        """``video`` uint8 ``[W, T, H, W, 3]`` and what names each row."""
        video = np.zeros((len(windows), *self.input_size, 3), np.uint8)
        for row, window in enumerate(windows):
            if window.frames is not None:
                video[row] = window.frames
        return {
            "chunk": np.asarray([window.unit["chunk"] for window in windows], np.int64),
            "unit_id": np.asarray([window.unit["unit_id"] for window in windows], np.int64),
            "window_index": np.asarray([window.window_index for window in windows], np.int64),
            "status": np.asarray([window.status for window in windows], object),
            "message": np.asarray([window.message for window in windows], object),
            "video": video,
        }


def failure(error: DecodeError | StorageError) -> tuple[str, str]:
    """Status word and message of a video that could not be read or decoded."""
    if isinstance(error, DecodeError):
        return error.reason, error.message
    return (MISSING if error.missing else UNREADABLE), str(error)


def _all_failed(
    unit: dict[str, Any], indices: Sequence[int], error: DecodeError | StorageError
) -> Iterator[DecodedWindow]:
    status, message = failure(error)
    for index in indices:
        yield DecodedWindow(unit, index, None, status, message)
