"""Text in the encodings of editors, whole and in parts; what is none is one message with its line."""

from __future__ import annotations

import io

import pytest

from pipeline.storage.errors import StorageError
from pipeline.storage.text import NotTextError, Utf8Stream, as_text

LINES = ["path,label", "a.mp4,schön", "b.mp4,走る", "c.mp4,x"]
LATIN = ["path,label", "a.mp4,schön", "c.mp4,x"]
NOT_UTF8 = {
    "WINDOWS-1252": "\n".join(LATIN).encode("latin-1"),
    "UTF-16LE": "\n".join(LATIN).encode("utf-16-le"),
    "UTF-16BE": "\n".join(LATIN).encode("utf-16-be"),
    "UTF-32": "\n".join(LATIN).encode("utf-32"),
    "UTF-32LE": "\n".join(LATIN).encode("utf-32-le"),
    "UTF-32BE": "\n".join(LATIN).encode("utf-32-be"),
    "UTF-16": "\n".join(LATIN).encode("utf-16")[:-1],
}
"""By the encoding to convert from."""
LINE = {"WINDOWS-1252": 2, "UTF-16": 3}
"""Of the first byte that is no text; 1 in all others."""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_every_encoding_and_line_end(encoding: str, line_end: str, size: int) -> None:
    content = line_end.join(LINES).encode(encoding)
    assert as_text(content, "a.csv") == "\n".join(LINES)
    stream = Utf8Stream(io.BytesIO(content), "a.csv")
    assert stream.first_line() == LINES[0]
    assert read_all(content, size) == line_end.join(LINES).encode()


@pytest.mark.parametrize("encoding", NOT_UTF8)
@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_what_is_no_text_names_line_and_conversion(encoding: str, line_end: bytes) -> None:
    content = NOT_UTF8[encoding]
    if encoding == "WINDOWS-1252":
        content = content.replace(b"\n", line_end)
    message = rf"^a\.csv: line {LINE.get(encoding, 1)} is not UTF-8; convert it: iconv -f {encoding} -t UTF-8 FILE"
    with pytest.raises(StorageError, match=message):
        as_text(content, "a.csv")
    with pytest.raises(NotTextError, match=message):
        Utf8Stream(io.BytesIO(content), "a.csv").read(100)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (
            b"path,label\na.mp4,ru\0n\n" + b"b.mp4,x\n" * 9,
            r"if it is one, remove them: tr -d '\\000' < FILE > NEW_FILE",
        ),
        (b"path,label\n\0" + "schön".encode("latin-1") + b"\nb.mp4,xxxxxxxxx\n", r"if it is one, remove them: tr -d"),
        ("path,label\na.mp4,r\0n\n".encode("utf-16"), r"or remove them in an editor"),
    ],
)
def test_a_zero_byte_has_a_remedy_that_helps(content: bytes, remedy: str) -> None:
    """No conversion removes it."""
    with pytest.raises(NotTextError, match=rf"^a\.csv: line 2 holds a zero byte, which no text has; .*{remedy}"):
        as_text(content, "a.csv")


def test_the_line_is_counted_through_all_parts() -> None:
    """A character that is cut by the end of a part is whole again with the next one."""
    content = "é\n".encode() * 100_000
    with pytest.raises(NotTextError, match=r"line 100001 is not UTF-8"):
        read_all(content + b"\xe9\n", 4097)
    with pytest.raises(NotTextError, match=r"line 100001 holds a zero byte"):
        read_all(content + b"b\0\n", 999)


def read_all(content: bytes, size: int) -> bytes:
    stream = Utf8Stream(io.BytesIO(content), "a.csv")
    return b"".join(iter(lambda: stream.read(size), b""))


def test_nothing_is_text() -> None:
    assert as_text(b"", "a.csv") == ""
    assert Utf8Stream(io.BytesIO(b""), "a.csv").first_line() == ""
