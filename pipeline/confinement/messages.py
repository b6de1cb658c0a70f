"""What a decoding child sends to its parent: a header in JSON, and bytes behind it.

A message is the header's length (4 bytes), the header ``[kind, content]`` and the bytes that it announces. Content is a
number, text, null, ``{"bytes": length}`` or ``{"Class": {field: value}}``. The child may have been taken over by a
video, so what is read has known classes with fields of the types that they state, is bounded before it is read, and
costs time by its length alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import struct
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol, runtime_checkable

KINDS = ("ready", "progress", "output", "done", "rejected")
MOST_HEADER_BYTES = 2**16
"""The largest of real headers hold a library's message: a few hundred bytes."""
MOST_BYTES_BESIDE_FACTS = 2**16
"""Of an answer's bytes, for services whose answers are facts."""
LENGTH = struct.Struct("!I")
NOT_FOR_A_CHILD = ("missing", "forbidden", "unreadable", "not_a_file", "disk_full", "timeout", "crashed", "interrupted")
"""Reasons that the parent alone gives: they are about the object, the machine or the child, not about the bytes."""
MOST = 2**31
"""Whole numbers are below: sides, frames, degrees. Tables hold them in 32 bits."""
LEAST_REAL, MOST_REAL = 2.0**-63, 2.0**40
"""Between them, or 0, are times, rates and ratios: what they divide or multiply stays finite."""
SURROGATE = re.compile("[\ud800-\udfff]")

Read = Callable[[int], bytes]
"""A number of bytes → that many, or an error."""


class MessageError(ValueError):
    """Bytes that are no message of a child that works."""


@runtime_checkable
class Checked(Protocol):
    """A dataclass whose fields have more rules than their types."""

    def is_plausible(self) -> bool:
        """Whether the values may be true of any video."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a video cannot be used, as `DecodeError` has it."""

    reason: str
    message: str

    def is_plausible(self) -> bool:
        """Whether a child may give the reason, one word."""
        return bool(re.fullmatch(r"[a-z_]{1,32}", self.reason)) and self.reason not in NOT_FOR_A_CHILD


def write_message(output: BinaryIO, kind: str, content: Any) -> None:
    """Send a plain value, or a dataclass of plain values.

    Raises:
        TypeError: it is something else.
    """
    attached: list[bytes] = []

    def named(value: Any) -> dict[str, Any]:
        if isinstance(value, bytes):
            attached.append(value)
            return {"bytes": len(value)}
        if dataclasses.is_dataclass(value):
            return {type(value).__name__: vars(value)}
        raise TypeError(f"{type(value).__name__} in a message")

    header = json.dumps([kind, content], default=named).encode()
    output.write(LENGTH.pack(len(header)) + header)
    for part in attached:
        output.write(part)
    output.flush()


class MessageReader:
    """Reads messages; the only place where what a child sends becomes objects.

    Args:
        classes: dataclasses that may be content.
        most_bytes: of all bytes behind one header.
    """

    def __init__(self, classes: Sequence[type], most_bytes: int) -> None:
        self._classes: Mapping[str, type] = {one.__name__: one for one in (Refusal, *classes)}
        self._most_bytes = most_bytes

    def read(self, read: Read) -> tuple[str, Any]:
        """The kind and the content of the next message.

        Raises:
            MessageError: it is none.
        """
        (length,) = LENGTH.unpack(read(LENGTH.size))
        if length > MOST_HEADER_BYTES:
            raise MessageError("a header is too long")
        kind, content = _header(read(length))
        message = kind, _Content(self._classes, read, self._most_bytes).of(content)
        if (kind == "rejected") != isinstance(message[1], Refusal):
            raise MessageError("a refusal is no answer, and an answer no refusal")
        return message


def _header(encoded: bytes) -> tuple[str, Any]:
    try:
        header = json.loads(encoded.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise MessageError(f"a header is no JSON: {type(error).__name__}") from error
    if type(header) is not list or len(header) != 2 or type(header[0]) is not str or header[0] not in KINDS:
        raise MessageError("a header has no kind and content")
    return header[0], header[1]


def _refuse_constant(name: str) -> float:
    """NaN and infinities, which Python's JSON has."""
    raise MessageError(f"{name} is no number")


class _Content:
    """The content of one message, whose bytes are read as its header announces them."""

    def __init__(self, classes: Mapping[str, type], read: Read, most_bytes: int) -> None:
        self._classes = classes
        self._read = read
        self._bytes_left = most_bytes

    def of(self, value: Any) -> Any:
        """A plain value, or a dataclass."""
        if type(value) is dict and value.keys() != {"bytes"}:
            return self._facts(value)
        return self._plain(value, (bool, int, float, str, bytes, type(None)))

    def _facts(self, value: dict[str, Any]) -> Any:
        name, fields = next(iter(value.items()), ("", None))
        if len(value) != 1 or name not in self._classes or type(fields) is not dict:
            raise MessageError("content of no known class")
        kinds = _field_kinds(self._classes[name])
        if fields.keys() != kinds.keys():
            raise MessageError(f"{name} has other fields")
        facts = self._classes[name](**{field: self._plain(part, kinds[field]) for field, part in fields.items()})
        if isinstance(facts, Checked) and not facts.is_plausible():
            raise MessageError(f"no {name} has these values")
        return facts

    def _plain(self, value: Any, kinds: tuple[type, ...]) -> Any:
        if type(value) is dict:
            value = self._attached(value)
        elif type(value) is int and float in kinds and int not in kinds and 0 <= value < MOST:
            value = float(value)
        if type(value) not in kinds or not _is_in_range(value):
            raise MessageError(f"{type(value).__name__} out of place or range")
        return value

    def _attached(self, announced: dict[str, Any]) -> bytes:
        length = announced.get("bytes")
        if len(announced) != 1 or type(length) is not int or not 0 <= length <= self._bytes_left:
            raise MessageError("more bytes than allowed")
        self._bytes_left -= length
        return self._read(length)


@functools.cache
def _field_kinds(kind: type) -> dict[str, tuple[type, ...]]:
    """Of every field the types that it may have."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: typing.get_args(hints[field.name]) or (hints[field.name],) for field in dataclasses.fields(kind)
    }


def _is_in_range(value: object) -> bool:
    """Numbers count, measure or lie in time; text can be stored as UTF-8."""
    if isinstance(value, int):
        return 0 <= value < MOST
    if isinstance(value, float):
        return value == 0 or LEAST_REAL <= value < MOST_REAL
    return not isinstance(value, str) or not SURROGATE.search(value)
