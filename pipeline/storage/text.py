"""Text that people or their editors wrote: UTF-8, or UTF-16 with a byte order mark, with the line ends of any system.

Lists, class lists, recipes and excluded names are all read here, whole (`as_text`) or part by part (`Utf8Stream`).
"""

from __future__ import annotations

import codecs
import re
from typing import Any

from pipeline.storage.errors import StorageError

_START_BYTES = 2**16
_OF_WINDOWS = "WINDOWS-1252"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotTextError(StorageError):
    """A file that is no text: the line, and how to convert or to clean it."""


class TextDecoder:
    """Bytes to text, part by part, without the byte order mark.

    Args:
        uri: named by the error.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._decoder: codecs.IncrementalDecoder | None = None
        self._start = b""
        self._newlines = self._returns = 0

    def decode(self, data: bytes, final: bool = False) -> str:
        """The text of the next part.

        Raises:
            NotTextError: it is neither UTF-8 nor UTF-16 with a byte order mark, or holds a zero byte.
        """
        if self._decoder is None:
            self._start = data[:_START_BYTES]
            encoding = "utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig"
            self._decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(error.encoding, errors="ignore")
            raise self._no_text(before) from error
        if "\0" in text:  # UTF-16 without a mark and UTF-32: of Latin letters this is valid UTF-8
            raise self._no_text(text)
        self._count_lines(text)
        return text

    def _count_lines(self, text: str) -> None:
        self._newlines += text.count("\n")
        self._returns += text.count("\r")

    def _no_text(self, before: str) -> NotTextError:
        text, zero, _ = before.partition("\0")
        self._count_lines(text)
        line, encoding = 1 + (self._newlines or self._returns), _likely_encoding(self._start)
        if zero and encoding in (_OF_WINDOWS, "UTF-16"):  # no conversion removes it
            remedy = "give a text file; if it is one, remove them: tr -d '\\000' < FILE > NEW_FILE"
            remedy = remedy if encoding == _OF_WINDOWS else "give a text file, or remove them in an editor"
            return NotTextError(self._uri, f"line {line} holds a zero byte, which no text has", remedy)
        remedy = f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW_FILE"
        return NotTextError(self._uri, f"line {line} is not UTF-8", remedy)


class Utf8Stream:
    """A binary stream of text in any of the encodings, as Arrow reads it: UTF-8 without byte order mark.

    Args:
        stream: open, at its start.
        uri: named by the error.
    """

    closed = False

    def __init__(self, stream: Any, uri: str) -> None:
        self._stream = stream
        self._decoder = TextDecoder(uri)
        self._waiting = self._next(_START_BYTES)

    def first_line(self) -> str:
        """The first line, up to 64 KiB of it, without its end; it stays to be read."""
        return re.split(r"\r\n|\r|\n", self._waiting.decode(errors="ignore"), maxsplit=1)[0]

    def read(self, size: int) -> bytes:
        """About so many of the next bytes; none at the end.

        Raises:
            NotTextError: see `TextDecoder.decode`.
        """
        while len(self._waiting) < size and (more := self._next(size - len(self._waiting))):
            self._waiting += more
        data, self._waiting = self._waiting[:size], self._waiting[size:]
        return data

    def _next(self, size: int) -> bytes:
        while data := self._stream.read(size):
            if text := self._decoder.decode(data):
                return text.encode()
        return self._decoder.decode(b"", final=True).encode()


def as_text(content: bytes, uri: str) -> str:
    """The text of a whole file, with newlines as line ends.

    Args:
        uri: named by the error.

    Raises:
        NotTextError: see `TextDecoder.decode`.
    """
    return TextDecoder(uri).decode(content, final=True).replace("\r\n", "\n").replace("\r", "\n")


def _likely_encoding(start: bytes) -> str:
    """What to convert from: the positions of zero bytes show UTF-16 and UTF-32, all else is most often of Windows."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if start.startswith(_UTF16_MARKS):
        return "UTF-16"
    many = len(start) // 8
    even, odd = (start[first::2].count(0) > many for first in (0, 1))
    if not even and not odd:
        return _OF_WINDOWS
    if even and odd:
        return "UTF-32LE" if start[0] else "UTF-32BE"
    return "UTF-16LE" if odd else "UTF-16BE"
