"""The stages of the tagging pipeline that read videos, as callable classes for Ray Data actors.

Legend: W windows of a batch, T frames, H, W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.decode.crash_budget import FATAL, MOST, Attempts
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.schema import OK
from pipeline.storage.files import StorageError, content_version, is_local, join, local_copy
from pipeline.storage.retry import RetryBudget
from pipeline.tagging.window_views import WindowViews
from pipeline.tagging.windows import PROBED_SCHEMA

# Bounds of one request to the decoder, so that long videos fit in memory and large ones meet the deadline.
WINDOWS_PER_REQUEST = 16
PIXELS_PER_REQUEST = 300e6
# Decoding window by window helps against damaged frames, not against what hangs or kills the decoder.
HOPELESS = ("timeout", "crashed", "out_of_memory")
# A single frame without a rate has no duration of its own; a window must have some.
NOMINAL_FPS = 25.0

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]


class ProbeVideos:
    """Videos of `PROBED_SCHEMA` → the same rows with the result of the probe, or why it failed."""

    def __init__(self, decode: DecodeConfig) -> None:
        self.decoder = IsolatedDecoder(decode)

    def __call__(self, videos: pa.Table) -> pa.Table:
        with RetryBudget().shared():
            rows = [row | self._probe(row["uri"]) for row in videos.to_pylist()]
        return pa.Table.from_pylist(rows, schema=PROBED_SCHEMA)

    def _probe(self, uri: str) -> dict[str, Any]:
        try:
            with local_copy(uri) as path:
                info = self.decoder.probe(path)
        except (DecodeError, StorageError) as error:
            return {"status": error.reason, "message": _message(error)}
        return {
            "duration_seconds": info.duration_seconds or info.num_frames / NOMINAL_FPS,
            "num_frames": info.num_frames,
            "fps": info.fps or NOMINAL_FPS,
            "width": info.width,
            "height": info.height,
        }


@dataclass(frozen=True)
class DecodedWindow:
    """One window with its frames, or with the reason why it has none."""

    unit: dict[str, Any]
    window_index: int
    frames: Frames | None
    status: str = OK
    message: str = ""
    attempts: int = 1


class DecodeWindows:
    """The units of one chunk → a row per window, in tables of exactly ``batch_size`` rows but for the last.

    Windows that cannot be decoded come last, with black frames, so that the batches before them stay full. With
    ``begun_folder`` the attempts at every unit are recorded there: a unit that killed two workers is not retried.
    """

    def __init__(
        self, decode: DecodeConfig, views: WindowViews, batch_size: int, begun_folder: str | None = None
    ) -> None:
        self.decoder = IsolatedDecoder(decode)
        self.views = views
        self.batch_size = batch_size
        self.begun_folder = begun_folder
        self._budget = RetryBudget()
        """Of one chunk: a dead store costs its first unit a whole budget, and the others a single try."""

    def __call__(self, units: pa.Table) -> Iterator[dict[str, npt.NDArray[Any]]]:
        batch: list[DecodedWindow] = []
        failed: list[DecodedWindow] = []
        self._budget = RetryBudget()
        attempts = self._attempts(units)
        repeated = attempts is not None and attempts.begun_before
        for unit in units.to_pylist():
            for window in self._windows(unit) if attempts is None else self._counted(unit, attempts):
                (batch if window.frames is not None else failed).append(window)
                if len(batch) == self.batch_size:
                    yield self._columns(batch, repeated)
                    batch = []
        rest = batch + failed
        for start in range(0, len(rest), self.batch_size):
            yield self._columns(rest[start : start + self.batch_size], repeated)

    def _attempts(self, units: pa.Table) -> Attempts | None:
        if self.begun_folder is None or len(units) == 0:
            return None
        return Attempts(join(self.begun_folder, f"{units['chunk'][0].as_py():06d}.json"))

    def _counted(self, unit: dict[str, Any], attempts: Attempts) -> Iterator[DecodedWindow]:
        """The windows of a unit, as one attempt at it; all failed when two attempts were made before."""
        key = str(unit["unit_id"])
        number = min(MOST, MOST - attempts.left(key) + 1)
        try:
            with attempts.at(key):
                for window in self._windows(unit):
                    if window.status in FATAL and attempts.left(key):
                        attempts.give_up(key)
                    # `IsolatedDecoder` has tried such a window twice itself.
                    yield replace(window, attempts=MOST if window.status in FATAL else number)
        except DecodeError as error:
            yield from (replace(window, attempts=MOST) for window in _all_failed(unit, _indices(unit), error))

    def _windows(self, unit: dict[str, Any]) -> Iterator[DecodedWindow]:
        indices = _indices(unit)
        try:
            with self._fetched(unit) as path:
                size = self._windows_per_request(unit)
                for start in range(0, len(indices), size):
                    for window in self._request(path, unit, indices[start : start + size]):
                        yield window
                    if window.status in FATAL:  # the rest of the video would kill the decoder again
                        error = DecodeError(window.status, window.message)
                        yield from _all_failed(unit, indices[start + size :], error)
                        return
        except (DecodeError, StorageError) as error:
            yield from _all_failed(unit, indices, error)

    @contextlib.contextmanager
    def _fetched(self, unit: Mapping[str, Any]) -> Iterator[Path]:
        """A local path with the content that was planned.

        Raises:
            DecodeError: the object has other content by now.
            StorageError: it is missing, forbidden, or the storage did not answer.
        """
        with contextlib.ExitStack() as stack:
            with self._budget.shared():  # not around the yield: it would hold for whatever the caller does meanwhile
                path = stack.enter_context(local_copy(unit["uri"]))
                _refuse_replaced(unit)
            yield path

    def _request(self, path: Path, unit: dict[str, Any], indices: Sequence[int]) -> Iterator[DecodedWindow]:
        """Decode some windows together; when that fails, one by one, to keep those beside the damage."""
        views = [view for index in indices for view in self.views.of(unit, index)]
        try:
            clips = self.decoder.decode(path, views)
            # A download cannot change while it is decoded; a local file can, so its version is checked again.
            if is_local(unit["uri"]):
                _refuse_replaced(unit)
        except DecodeError as error:
            if error.reason in HOPELESS or len(indices) == 1:
                yield from _all_failed(unit, indices, error)
                return
            for index in indices:
                yield from self._request(path, unit, [index])
            return
        for number, index in enumerate(indices):
            own = clips[number * self.views.per_window : (number + 1) * self.views.per_window]
            yield DecodedWindow(unit, index, own[0] if len(own) == 1 else np.concatenate(own))

    def _windows_per_request(self, unit: dict[str, Any]) -> int:
        pixels_per_second = unit["width"] * unit["height"] * unit["num_frames"] / unit["duration_seconds"]
        affordable = PIXELS_PER_REQUEST / (pixels_per_second * self.views.grid.hop_seconds)
        return max(1, min(WINDOWS_PER_REQUEST, int(affordable)))

    def _columns(self, windows: Sequence[DecodedWindow], repeated: bool) -> dict[str, npt.NDArray[Any]]:
        """``video`` uint8 ``[W, views * T, H, W, 3]`` and the columns that identify each row.

        Args:
            repeated: whether the chunk was begun before.
        """
        video = np.zeros((len(windows), *self.views.stacked_size, 3), np.uint8)
        for row, window in enumerate(windows):
            if window.frames is not None:
                video[row] = window.frames
        return {
            **{name: np.array([window.unit[name] for window in windows]) for name in ("chunk", "unit_id")},
            **{name: np.array([getattr(window, name) for window in windows]) for name in ("window_index", "attempts")},
            **{name: np.array([getattr(window, name) for window in windows], object) for name in ("status", "message")},
            "repeated": np.full(len(windows), repeated),
            "video": video,
        }


def _refuse_replaced(unit: Mapping[str, Any]) -> None:
    """`DecodeError` for another object than was listed: its scores must not stand under the version of that one."""
    if content_version(unit["uri"]) != unit["content_version"]:
        raise DecodeError("replaced", "the object was replaced after it was listed; run tag again")


def _indices(unit: Mapping[str, Any]) -> range:
    return range(unit["first_window"], unit["first_window"] + unit["num_windows"])


def _message(error: DecodeError | StorageError) -> str:
    return error.message if isinstance(error, DecodeError) else str(error)


def _all_failed(
    unit: dict[str, Any], indices: Sequence[int], error: DecodeError | StorageError
) -> Iterator[DecodedWindow]:
    for index in indices:
        yield DecodedWindow(unit, index, None, error.reason, _message(error))
