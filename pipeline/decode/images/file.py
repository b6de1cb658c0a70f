"""One image file: its facts, and its pixels as Pillow gives them. Runs in the image decoder's child process only.

The content decides the format, never the name. Pixels are RGB uint8, upright (EXIF), of the first frame where there are
several. Alpha is dropped and CMYK converted as ``Image.convert("RGB")`` does, which data loaders of images use.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline.decode.config import DecodeConfig, DecodeError, ImageView, VideoInfo
from pipeline.decode.media import descriptor
from pipeline.sampling import Interpolation

# Imported at once: Pillow would import them from within a request, when the child is confined and opens no file.
PLUGINS = (
    JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin, GifImagePlugin, BmpImagePlugin, TiffImagePlugin,
    AvifImagePlugin, PpmImagePlugin,
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""What is opened; Pillow has fifty formats more, some of them with other programs or from other files."""
Image.MAX_IMAGE_PIXELS = None  # `max_image_pixels` is checked instead, with a reason
Image.preinit()
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a confined child starts no threads
RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# EXIF 2.32, 4.6.4, tag 274: how the stored picture becomes the one that is shown.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CLOCKWISE = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}
_MIRRORED = (2, 4, 5, 7)
_SIXTEEN_BITS = 2**16


@contextlib.contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """An open descriptor of this process (``/proc/self/fd/N``) from its start: a confined child opens nothing."""
    number = descriptor(path)
    if number is None:
        raise DecodeError("unreadable", "an image is read from an open descriptor")
    os.lseek(number, 0, os.SEEK_SET)
    with os.fdopen(number, "rb", closefd=False) as file:
        yield file


@contextlib.contextmanager
def opened(file: BinaryIO, limits: DecodeConfig) -> Iterator[Image.Image]:
    """An image of which the header is read. Errors of Pillow while the context lasts become the image's.

    Raises:
        DecodeError: "empty", "max_bytes"; "not_an_image"; "max_image_pixels"; "damaged".
    """
    _check_size(file, limits)
    try:
        with _identified(file, limits) as image:
            yield image
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # its plugins let through whatever broken bytes lead to
        raise DecodeError.quoting("damaged", f"{type(error).__name__}: {error}") from error


def facts(image: Image.Image, limits: DecodeConfig) -> VideoInfo:
    """The facts of an open image; of an animation or several pages all frames are counted."""
    turn = _orientation(image)
    width, height = image.size if turn < 5 else image.size[::-1]
    frames = int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1  # its others are previews and depth
    if frames > limits.max_frames:
        raise DecodeError.over("max_frames", frames, limits.max_frames)
    name = (image.format or "").lower()
    return VideoInfo(
        width, height, 0.0, frames, 0.0, name, name, rotation=_CLOCKWISE.get(turn, 0), mirrored=turn in _MIRRORED
    )


def upright(image: Image.Image) -> Image.Image:
    """The first frame as it is shown, RGB."""
    turn = _TURNS.get(_orientation(image))
    image.seek(0)
    picture = _rgb(image)
    return picture if turn is None else picture.transpose(turn)


def rendered(picture: Image.Image, view: ImageView, limits: DecodeConfig) -> Image.Image:
    """The part of an upright picture that a view shows, in its size.

    Raises:
        DecodeError: "max_image_pixels", the whole picture in the size of the test transform would be larger.
    """
    height, width = view.size
    method = RESAMPLING[view.interpolation]
    if view.short_side is None:
        if view.crop is not None:
            top, left, box_height, box_width = view.crop
            picture = picture.crop((left, top, left + box_width, top + box_height))
        return picture.resize((width, height), method)
    short = min(picture.size)
    wide, high = (view.short_side if side == short else int(view.short_side * side / short) for side in picture.size)
    if wide * high > limits.max_image_pixels:
        raise DecodeError.over("max_image_pixels", wide * high, limits.max_image_pixels)
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return picture.resize((wide, high), method).crop((left, top, left + width, top + height))


def _check_size(file: BinaryIO, limits: DecodeConfig) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise DecodeError("empty", "the file has 0 bytes")
    if size > limits.max_bytes:
        raise DecodeError.over("max_bytes", size, limits.max_bytes)


def _identified(file: BinaryIO, limits: DecodeConfig) -> Image.Image:
    """By its header alone: no pixel is decoded, no memory for pixels taken."""
    _refuse_large_webp(file, limits)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DecodeError("not_an_image", f"its content is none of {', '.join(FORMATS)}") from error
    width, height = image.size
    if width * height > limits.max_image_pixels:
        image.close()
        raise DecodeError.over("max_image_pixels", width * height, limits.max_image_pixels)
    return image


def _refuse_large_webp(file: BinaryIO, limits: DecodeConfig) -> None:
    """Of WebP Pillow takes memory for two pictures already when it opens the file: its canvas is looked at before.

    Source: https://developers.google.com/speed/webp/docs/riff_container, "Extended File Format".
    """
    begin = file.read(30)
    file.seek(0)
    if begin[8:16] == b"WEBPVP8X" and len(begin) == 30:
        width, height = (int.from_bytes(begin[at : at + 3], "little") + 1 for at in (24, 27))
        if width * height > limits.max_image_pixels:
            raise DecodeError.over("max_image_pixels", width * height, limits.max_image_pixels)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 without one, or with one that cannot be read. TIFF is turned by Pillow itself."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel; of sixteen the higher ones. Pillow would clip grey levels of 16 bits to white."""
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() >= 0 and levels.max() < _SIXTEEN_BITS:
            return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode not in ("F", "LAB"):
        return image.convert("RGB")
    raise DecodeError("unsupported", f"pixels of Pillow's mode {image.mode} are no colours of 8 or 16 bits")
