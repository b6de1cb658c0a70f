"""The one function that opens a media file for reading; `tests/test_boundaries.py` lets no other code do it.

A "video" may come from anybody. Playlists (``ffconcat``, HLS, DASH, SDP), image sequences and devices name other files
or hosts, which FFmpeg would open; so only containers that hold the pictures themselves are accepted, whatever the name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import av
import av.error
from av.container import InputContainer

from pipeline.decode.config import DecodeError

FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "wtv", "dv", "nut", "ivf", "rm", "gif",
    "mpegvideo", "h263", "h264", "hevc", "m4v", "obu",
)  # fmt: skip
"""FFmpeg's demuxers of real containers and raw streams; a demuxer of several (``mov,mp4,m4a,3gp,3g2,mj2``) by its
first name. Tracks of a MOV that lie in other files stay closed by FFmpeg's defaults (``enable_drefs``)."""
_DESCRIPTORS = "/proc/self/fd/"
_NOT_ACCEPTED = "Format not on whitelist"
# What the first bytes of the containers that decord may open look like. Its FFmpeg has its own way to guess formats.
_EBML, _RIFF, _BOXES = b"\x1a\x45\xdf\xa3", b"RIFF", (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def open_media(path: str) -> InputContainer:
    """An open container.

    Args:
        path: of a file, or of an open descriptor of this process, which is then read from its start without opening
            anything by name. Two containers of one descriptor share its position: see `side_by_side`.

    Raises:
        DecodeError: "not_a_video"; with "format not accepted" where FFmpeg would read it, but as none of ``FORMATS``.
    """
    name, protocol = path, {"protocol_whitelist": "file"}
    if (file := descriptor(path)) is not None:
        os.lseek(file, 0, os.SEEK_SET)
        name, protocol = "fd:", {"protocol_whitelist": "fd", "fd": str(file)}
    try:
        return av.open(name, options={**protocol, "format_whitelist": ",".join(FORMATS)}, metadata_errors="replace")
    except av.error.FFmpegError as error:
        # There where logging has a level, as in the child: level, demuxer, text (PyAV's stub has two members).
        demuxer, text = map(str, error.log[-2:]) if error.log else ("", "")
        if text.startswith(_NOT_ACCEPTED):
            raise DecodeError.quoting("not_a_video", f"format not accepted: {demuxer}") from error
        raise DecodeError.quoting("not_a_video", f"cannot be opened: {error.strerror}") from error


def descriptor(path: str) -> int | None:
    """The number of the open descriptor that a path names; None for any other path."""
    number = path.removeprefix(_DESCRIPTORS)
    return int(number) if path.startswith(_DESCRIPTORS) and number.isdecimal() else None


def status_of(path: str) -> os.stat_result:
    """The status of a file, or of an open descriptor; `OSError` where there is none."""
    return os.stat(path) if (file := descriptor(path)) is None else os.fstat(file)


@contextlib.contextmanager
def side_by_side(path: str) -> Iterator[None]:
    """Around reading a second container of a file while another stands still: this one continues where it was."""
    file = descriptor(path)
    if file is None:
        yield
        return
    position = os.lseek(file, 0, os.SEEK_CUR)
    try:
        yield
    finally:
        os.lseek(file, position, os.SEEK_SET)


def begins_as_container(path: str) -> bool:
    """Whether the first bytes are those of MP4/MOV, Matroska/WebM or AVI: no other library can take it for a playlist.

    Raises:
        DecodeError: "unreadable".
    """
    try:
        if (descriptor_number := descriptor(path)) is not None:
            begin = os.pread(descriptor_number, 12, 0)
        else:
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                begin = file.read(12)
    except OSError as error:
        raise DecodeError("unreadable", str(error.strerror)) from error
    return begin.startswith(_EBML) or begin[4:8] in _BOXES or (begin.startswith(_RIFF) and begin[8:] == b"AVI ")
