"""The stage of the tagging pipeline that reads videos: each object once, probed and decoded window by window.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.decode.crash_budget import FATAL
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.schema import OK
from pipeline.storage.blame import Blame, blame
from pipeline.storage.files import StorageError, is_local
from pipeline.storage.members import local_content, version_of
from pipeline.storage.retry import RetryBudget
from pipeline.tagging.window_views import WindowViews

# Bounds of one request to the decoder, so that long videos fit in memory and large ones meet the deadline.
WINDOWS_PER_REQUEST = 16
PIXELS_PER_REQUEST = 300e6
# Decoding window by window helps against damaged frames, not against what hangs or kills the decoder.
HOPELESS = ("timeout", "crashed", "out_of_memory", "max_cpu_seconds")
# A single frame without a rate has no duration of its own; a window must have some.
NOMINAL_FPS = 25.0
MAX_REPEATED_WINDOWS = 1000

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]
Video = Mapping[str, Any]
"""A listed video (``uri``, ``content_version``, ``video_id``), once it is probed with the `facts`."""


@dataclass(frozen=True)
class DecodedWindow:
    """One window with its frames, or with the reason why it has none."""

    video: Video
    index: int | None
    """None of a video that cannot be opened at all."""
    frames: Frames | None
    status: str = OK
    message: str = ""
    blame: Blame = Blame.OBJECT
    """Whose fault it is that it has none."""


class DecodeWindows:
    """Videos → their windows in order."""

    def __init__(
        self, decode: DecodeConfig, views: WindowViews, max_repeated_windows: int = MAX_REPEATED_WINDOWS
    ) -> None:
        self.decoder = IsolatedDecoder(decode, views.media)
        self.views = views
        self.max_repeated_windows = max_repeated_windows
        self._budget = RetryBudget()
        """Of one task: a dead store costs its first video a whole budget, and the others a single try."""

    def begin_task(self) -> None:
        """Grant storage a new budget of retries."""
        self._budget = RetryBudget()

    def __call__(self, listed: Video) -> Iterator[DecodedWindow]:
        """All windows of one video, which is fetched once; a single one without index where it cannot be opened."""
        try:
            with self._fetched(listed) as path:
                video = {**listed, **self.facts(path)}
                yield from self._windows(path, video)
        except (DecodeError, StorageError) as error:
            yield _failed(listed, None, error)

    def facts(self, path: Path) -> dict[str, Any]:
        """What `WindowViews.of` needs of a video, and more that its row holds."""
        info = self.decoder.probe(path)
        frames = info.num_frames
        if self.views.media == "image":  # of an animation the first frame is tagged
            info = replace(info, num_frames=1)
        duration = info.duration_seconds or info.num_frames / NOMINAL_FPS
        # An index may claim any number; each takes a byte or more.
        num_frames = max(1, min(info.num_frames, path.stat().st_size))
        num_windows = int(self.views.grid.count(duration))
        self._refuse_repeated(num_windows, num_frames)
        return {
            "duration_seconds": duration,
            "frames": frames,
            "num_frames": num_frames,
            "fps": info.fps or NOMINAL_FPS,
            "width": info.width,
            "height": info.height,
            "cut_off": info.cut_off,
            "num_windows": num_windows,
        }

    def _refuse_repeated(self, num_windows: int, num_frames: int) -> None:
        """A few pictures with hours between them would cost as much as hours of video."""
        if num_windows - num_frames > self.max_repeated_windows:
            message = (
                f"{num_windows} windows of {num_frames} frames; over max_repeated_windows={self.max_repeated_windows}"
            )
            raise DecodeError("max_repeated_windows", message)

    def _windows(self, path: Path, video: Video) -> Iterator[DecodedWindow]:
        indices, spent_before = range(video["num_windows"]), self.decoder.cpu_seconds
        size = self._windows_per_request(video)
        for start in range(0, len(indices), size):
            if (spent := self.decoder.cpu_seconds - spent_before) > self.decoder.limits.max_cpu_seconds:
                over = DecodeError.over("max_cpu_seconds", spent, self.decoder.limits.max_cpu_seconds)
                yield from _all_failed(video, indices[start:], over.reason, over.message)
                return
            for window in self._request(path, video, indices[start : start + size]):
                yield window
            if window.status in FATAL:  # the rest of the video would kill the decoder again
                yield from _all_failed(video, indices[start + size :], window.status, window.message)
                return

    @contextlib.contextmanager
    def _fetched(self, video: Video) -> Iterator[Path]:
        """A local path with the content that was listed.

        Raises:
            DecodeError: the object has other content by now.
            StorageError: it is missing, forbidden, or the storage did not answer.
        """
        with contextlib.ExitStack() as stack:
            with self._budget.shared():  # not around the yield: it would hold for whatever the caller does meanwhile
                path = stack.enter_context(local_content(video["uri"], self.decoder.limits.max_bytes))
                _refuse_replaced(video)
            yield path

    def _request(self, path: Path, video: Video, indices: Sequence[int]) -> Iterator[DecodedWindow]:
        """Decode some windows together; when that fails, one by one, to keep those beside the damage."""
        views = [view for index in indices for view in self.views.of(video, index)]
        try:
            clips = self.decoder.decode(path, views)
            # A download cannot change while it is decoded; a local file can, so its version is checked again.
            if is_local(video["uri"]):
                _refuse_replaced(video)
        except (DecodeError, StorageError) as error:
            if error.reason in HOPELESS or len(indices) == 1:
                yield from (_failed(video, index, error) for index in indices)
                return
            for index in indices:
                yield from self._request(path, video, [index])
            return
        for number, index in enumerate(indices):
            own = clips[number * self.views.per_window : (number + 1) * self.views.per_window]
            yield DecodedWindow(video, index, own[0] if len(own) == 1 else np.concatenate(own))

    def _windows_per_request(self, video: Video) -> int:
        pixels_per_second = video["width"] * video["height"] * video["num_frames"] / video["duration_seconds"]
        affordable = PIXELS_PER_REQUEST / (pixels_per_second * self.views.grid.hop_seconds)
        return max(1, min(WINDOWS_PER_REQUEST, int(affordable)))


def _refuse_replaced(video: Video) -> None:
    """`DecodeError` for another object than was listed: its scores must not stand under the version of that one."""
    if version_of(video["uri"]) != video["content_version"]:
        raise DecodeError("replaced", "the object was replaced after it was listed; run tag again")


def _failed(video: Video, index: int | None, error: DecodeError | StorageError) -> DecodedWindow:
    if isinstance(error, DecodeError):
        return DecodedWindow(video, index, None, error.reason, error.message)
    return DecodedWindow(video, index, None, error.reason, str(error), blame(error))


def _all_failed(video: Video, indices: Sequence[int], status: str, message: str) -> Iterator[DecodedWindow]:
    for index in indices:
        yield DecodedWindow(video, index, None, status, message)
