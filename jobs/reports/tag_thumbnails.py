"""The gallery of a tagging run: which videos to show, and their thumbnail strips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.decode.config import DecodeConfig, DecodeError, ImageView, TimeView, VideoInfo
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.media import Media
from pipeline.sampling import CropBox
from pipeline.storage.files import StorageError
from pipeline.storage.members import local_content

FRAMES = 4
FRAME_SIZE = (120, 160)  # height and width in pixels, whatever the shape of the video: its middle is shown
GAP_PIXELS = 4
JPEG_QUALITY = 82

Video = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """A video of the gallery."""

    video: Video
    """Its row in ``videos/``, or that of a window."""
    strip: bytes
    """A JPEG of frames side by side; empty where the video cannot be decoded any more."""


def choose_videos(videos: pa.Table, count: int) -> list[Video]:
    """Videos with labels, the most certain of every top label in turn, so that many labels are shown.

    Args:
        videos: with columns ``uri, labels, scores``.
    """
    labelled = videos.filter(pc.greater(pc.list_value_length(videos["labels"]), 0))
    label, score = (pc.list_element(labelled[name], 0) for name in ("labels", "scores"))
    ranks = pa.table({"label": label, "score": score, "uri": labelled["uri"], "row": np.arange(len(labelled))})
    ranks = ranks.sort_by([("label", "ascending"), ("score", "descending"), ("uri", "ascending")])
    ranks = ranks.append_column("turn", pa.array(_numbers_within(ranks["label"])))
    best = ranks.sort_by([("turn", "ascending"), ("score", "descending")]).slice(0, count)
    chosen: list[Video] = labelled.take(best["row"]).to_pylist()
    return chosen


def _numbers_within(groups: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Of rows whose groups stand together, the number of each within its group ``[N]``."""
    codes = groups.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.asarray(np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes))), np.int64)


def gallery(videos: Sequence[Video], decode: DecodeConfig, media: Media = "video") -> Iterator[Shown]:
    """The strips of some videos, or of the windows that have a start and an end, decoded one after the other."""
    with IsolatedDecoder(decode, media) as decoder:
        for video in videos:
            try:
                with local_content(video["uri"], decode.max_bytes) as path:
                    info = decoder.probe(path)
                    (frames,) = decoder.decode(path, [_strip_view(info, media, video)])
                yield Shown(video, strip_picture(frames))
            except (DecodeError, StorageError):  # deleted or changed since it was tagged
                yield Shown(video, b"")


def strip_picture(frames: npt.NDArray[np.uint8]) -> bytes:
    """uint8 RGB ``[T, H, W, 3]`` → a JPEG of them side by side."""
    parted = np.pad(frames, ((0, 0), (0, 0), (0, GAP_PIXELS), (0, 0)))
    side_by_side = np.concatenate(list(parted), axis=1)[:, :-GAP_PIXELS]
    _, encoded = cv2.imencode(".jpg", side_by_side[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes()


def _strip_view(info: VideoInfo, media: Media, video: Video) -> TimeView | ImageView:
    if media == "image":
        return ImageView(_middle(info), FRAME_SIZE)
    start, end = video.get("start_seconds", 0.0), video.get("end_seconds", info.duration_seconds)
    return TimeView(start + (np.arange(FRAMES) + 0.5) / FRAMES * (end - start), _middle(info), FRAME_SIZE)


def _middle(info: VideoInfo) -> CropBox:
    """The largest part around the middle that has the shape of the strip's frames."""
    height, width = FRAME_SIZE
    scale = min(info.height / height, info.width / width)
    part = int(height * scale), int(width * scale)
    return CropBox((info.height - part[0]) // 2, (info.width - part[1]) // 2, *part)
