"""The decoder's child process: answers one request at a time, frames go into shared memory.

It holds nothing that a damaged video could hurt, and its imports are few, so that it starts in 0.2 s. Legend: T frames,
H, W pixels; pictures are RGB uint8.
"""

from __future__ import annotations

import math
import mmap
import resource
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.decode.child_process import LIBRARY_ERRORS, arm, confine, openable, rejection
from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, TimeView
from pipeline.decode.video_file import MISSING_FRAMES_TOLERATED, Complaints, Picture, Video, scaled

try:
    import decord
except (ImportError, OSError):  # no wheel for this platform
    decord = None

Key = int | float  # a frame's index, or a time in seconds
View = FrameView | TimeView

BATCH_BYTES = 64 * 2**20
PROGRESS_FRAMES = 32
# decord 0.6 is silently wrong on program streams without index and on AVIs with B-frames, and knows no newer codec.
DECORD_CONTAINERS = ("mov", "matroska", "avi")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4")


class DecordFrames:
    """The frames of a video by decord; rejects what decord cannot be trusted with."""

    def __init__(self, video: Video) -> None:
        self.video = video

    @staticmethod
    def trusted(video: Video) -> bool:
        """True for the containers and codecs that decord 0.6 decodes correctly, in the absence of damage."""
        return (
            decord is not None
            and video.container_name.startswith(DECORD_CONTAINERS)
            and not video.counts_only
            and video.codec.name in DECORD_CODECS
            and len(video.container.streams.video) == 1
        )

    def read(self, indices: Sequence[int], scale: float) -> Iterator[tuple[int, Picture]]:
        """See ``FrameSource``."""
        try:
            reader = self._open(scale)
            if len(reader) <= indices[-1]:
                raise DecodeError("missing_frames", f"decord counts {len(reader)} frames")
            for chunk in _chunks(indices, self._frames_a_batch(scale)):
                yield from zip(chunk, reader.get_batch(chunk).asnumpy(), strict=True)
        except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
            raise DecodeError(
                "damaged", f"decord: {str(error).splitlines()[-1] if str(error) else 'failed'}"
            ) from error

    def _open(self, scale: float) -> Any:
        if scale == 1:
            return decord.VideoReader(self.video.path, num_threads=1)
        height, width = (scaled(side, scale) for side in self.video.shown_size)
        return decord.VideoReader(self.video.path, num_threads=1, height=height, width=width)

    def _frames_a_batch(self, scale: float) -> int:
        bytes_a_frame = 3 * self.video.coded_height * self.video.coded_width * scale * scale
        return max(1, int(BATCH_BYTES / bytes_a_frame))


def render(video: Video, views: Sequence[View], outputs: Sequence[npt.NDArray[np.uint8]], backend: str) -> str:
    """Fill ``outputs`` (one ``[T, H, W, 3]`` a view) from one pass over the video; returns who decoded it."""
    if views[0].keys.dtype.kind == "f":
        _render(video.read_times, video, views, outputs)
        return "pyav"
    if backend == "decord" and DecordFrames.trusted(video):
        try:
            _render(DecordFrames(video).read, video, views, outputs)
        except DecodeError:
            pass  # PyAV decides: decord gives up on videos that newer decoders read
        else:
            return "decord"
    _render(video.read, video, views, outputs)
    return "pyav"


def _render(
    read: Callable[..., Iterator[tuple[Any, Picture]]],
    video: Video,
    views: Sequence[View],
    outputs: Sequence[npt.NDArray[np.uint8]],
) -> None:
    by_scale: dict[float, list[int]] = {}
    for number, view in enumerate(views):
        by_scale.setdefault(_source_scale(video, view), []).append(number)
    for scale, numbers in by_scale.items():
        _render_at(read, scale, [views[number] for number in numbers], [outputs[number] for number in numbers])


def _render_at(
    read: Callable[..., Iterator[tuple[Any, Picture]]],
    scale: float,
    views: Sequence[View],
    outputs: Sequence[npt.NDArray[np.uint8]],
) -> None:
    uses: dict[Key, list[tuple[int, int]]] = {}
    for number, view in enumerate(views):
        for frame, key in enumerate(view.keys.tolist()):
            uses.setdefault(key, []).append((number, frame))
    for key, picture in read(sorted(uses), scale):
        for number, frame in uses[key]:
            _cut_out(picture, views[number], scale, outputs[number][frame])


def _cut_out(picture: Picture, view: View, scale: float, output: Picture) -> None:
    """Crop and resize into ``output``: bilinear, by area where several pixels become one."""
    height, width = picture.shape[:2]
    top, left, box_height, box_width = view.crop or (0, 0, round(height / scale), round(width / scale))
    top, left = min(round(top * scale), height - 1), min(round(left * scale), width - 1)
    box = picture[top : top + max(1, round(box_height * scale)), left : left + max(1, round(box_width * scale))]
    if box.shape == output.shape:
        np.copyto(output, box)
        return
    shrinks = min(box.shape[0] / output.shape[0], box.shape[1] / output.shape[1]) >= 2
    cv2.resize(box, output.shape[1::-1], output, 0, 0, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _source_scale(video: Video, view: View) -> float:
    """How much the whole picture may shrink while it is decoded: 1, 1/2, 1/4, ..., never below what the view shows.

    Decided for each view alone, so that its pixels do not depend on what else is decoded with it.
    """
    _, _, box_height, box_width = view.crop or (0, 0, *video.shown_size)
    needed = max(view.size[0] / box_height, view.size[1] / box_width)
    return 2.0 ** min(0, math.ceil(math.log2(needed)))


def validate(video: Video, progress: Callable[[], None]) -> dict[str, Any]:
    """Decode everything; the facts with the frames that really came.

    Raises:
        DecodeError: "damaged", where the decoder reports an error, a corrupt frame, or frames that never came.
    """
    info = video.info()
    count = 0
    with Complaints(video) as complaints:
        for frame in video.frames():
            complaint = complaints.new()
            if frame.is_corrupt or complaint:
                raise DecodeError.quoting("damaged", f"frame {count} is corrupt {complaint}".strip())
            count += 1
            if count % PROGRESS_FRAMES == 0:
                progress()
        if complaint := complaints.new():
            raise DecodeError.quoting("damaged", f"after frame {count}: {complaint}")
    promised = max(info["num_frames"], video.stream.frames - video.discarded)
    if count < promised - MISSING_FRAMES_TOLERATED or count == 0:
        raise DecodeError("damaged", f"{count} of {promised} frames can be decoded")
    return {**info, "num_frames": count}


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


class Service:
    """Answers one request at a time until the parent closes the connection."""

    def __init__(self, connection: Connection, memory: int, config: DecodeConfig) -> None:
        self.connection = connection
        self.memory = memory
        self.mapping: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self.config = config

    def serve(self) -> None:
        self.connection.send(("ready",))
        while True:
            try:
                kind, path, details = self.connection.recv()
            except EOFError:
                return
            arm(self.config.deadline_seconds)
            self.connection.send(self._answer(kind, path, details))
            arm(0)

    def _answer(self, kind: str, path: str, details: Any) -> tuple[Any, ...]:
        try:
            return "done", self._work(kind, path, details), _resident_bytes()
        except (DecodeError, MemoryError, cv2.error, *LIBRARY_ERRORS) as error:
            return "rejected", *rejection(error), _resident_bytes()

    def _work(self, kind: str, path: str, details: Any) -> Any:
        # A view for training has one deadline for all; what looks at a whole file has one for each step.
        progress = (lambda: None) if kind == "decode" else self._progress
        with openable(path) as name:
            return self._work_on(kind, Video(name, self.config, progress), details)

    def _work_on(self, kind: str, video: Video, details: Any) -> Any:
        try:
            if kind == "probe":
                return video.info()
            if kind == "validate":
                return validate(video, self._progress)
            return self._decode(video, details)
        finally:
            video.close()

    def _decode(self, video: Video, details: Any) -> str:
        views: list[View] = details["views"]
        if len(self.mapping) < details["bytes"]:
            self.mapping = np.frombuffer(mmap.mmap(self.memory, details["bytes"]), np.uint8)
        outputs = []
        for view, offset in zip(views, details["offsets"], strict=True):
            shape = (len(view.keys), *view.size, 3)
            outputs.append(self.mapping[offset : offset + math.prod(shape)].reshape(shape))
        return render(video, views, outputs, details["backend"])

    def _progress(self) -> None:
        arm(self.config.deadline_seconds)
        self.connection.send(("progress",))


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(connection_file: int, memory_file: int, _input_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``; videos in memory are opened as files."""
    connection = Connection(connection_file)
    config: DecodeConfig = connection.recv()
    confine(config.memory_bytes)
    cv2.setNumThreads(1)
    if decord is not None:
        decord.logging.set_level(decord.logging.QUIET)
    Service(connection, memory_file, config).serve()
