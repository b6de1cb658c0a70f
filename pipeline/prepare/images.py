"""Images in a prepared set: each is checked by decoding all of it, and stored as it is, as a clip of one frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.transcode.config import StoredClip

# What the first bytes look like: (offset, bytes).
_IMAGES = {
    "JPEG": ((0, b"\xff\xd8\xff"),),
    "PNG": ((0, b"\x89PNG\r\n\x1a\n"),),
    "WebP": ((0, b"RIFF"), (8, b"WEBP")),
    "BMP": ((0, b"BM"),),
    "TIFF": ((0, b"II*\0"),),
    "big-endian TIFF": ((0, b"MM\0*"),),
    "AVIF": ((4, b"ftypavif"),),
}
_VIDEOS = {
    "Matroska": ((0, b"\x1a\x45\xdf\xa3"),),
    "AVI": ((0, b"RIFF"), (8, b"AVI ")),
    "MP4": ((4, b"ftyp"),),
    "MPEG": ((0, b"\0\0\1\xba"),),
}


class ImageChecker:
    """Stands where the transcoder stands for videos; holds one decoding child."""

    def __init__(self, limits: DecodeConfig) -> None:
        self.decoder = IsolatedDecoder(limits, "image")

    def process(self, path: str | os.PathLike[str]) -> Iterator[StoredClip | VideoInfo]:
        """The one clip of an image, without its bytes; last its facts.

        Raises:
            DecodeError: the image cannot be used.
        """
        info = self.decoder.validate(path)
        yield StoredClip(0.0, 0.0, info.width, info.height, info.fps, 1, None)
        yield info

    def close(self) -> None:
        """End the child."""
        self.decoder.close()


def refuse_other_media(path: Path, error: DecodeError) -> None:
    """Explain a rejection of an image as a video, or of a video as an image; else return.

    Raises:
        DecodeError: of the same reason, with the remedy.
    """
    if error.reason not in ("not_a_video", "not_an_image"):
        return
    kinds, other = (_IMAGES, "image") if error.reason == "not_a_video" else (_VIDEOS, "video")
    with path.open("rb") as file:
        begin = file.read(16)
    for name, parts in kinds.items():
        if all(begin[at : at + len(part)] == part for at, part in parts):
            message = f"its content is {name}: media={other} prepares {other}s, into a set of their own"
            raise DecodeError(error.reason, message) from error
