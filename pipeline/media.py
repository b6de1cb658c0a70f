"""The two kinds of media, and the names that their files have. Imports nothing: every decoding child has it."""

from __future__ import annotations

from typing import Literal

Media = Literal["video", "image"]
"""What a set holds: videos, or images, each of which is a clip of one frame."""

VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
"""Names that are taken for videos when a folder is listed; a manifest may name any file."""

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Names that are taken for images when a folder is listed; what an image is, its content decides."""

SUFFIXES: dict[Media, tuple[str, ...]] = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES}
