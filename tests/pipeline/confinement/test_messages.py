"""Messages of a child: what works comes through unchanged, and of arbitrary bytes nothing but data."""

from __future__ import annotations

import dataclasses
import io
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.confinement.messages import LENGTH, MOST_HEADER_BYTES, MessageError, MessageReader, Refusal, write_message
from pipeline.decode.config import VideoInfo
from pipeline.transcode.config import Damage, StoredClip

INFO = VideoInfo(64, 48, 30.0, 60, 2.0, "h264", "mov", 90, True, 1.5, 1, 0.25, 2)
CLIP = StoredClip(0.0, 2.0, 64, 48, 29.97002997002997, 60, b"\0bytes\xff")
CLASSES = (VideoInfo, StoredClip, Damage)
READER = MessageReader(CLASSES, 100)


def received(message: bytes, reader: MessageReader = READER) -> tuple[str, Any]:
    stream = io.BytesIO(message)

    def read(length: int) -> bytes:
        if len(part := stream.read(length)) < length:
            raise EOFError
        return part

    return reader.read(read)


def sent(kind: str, content: Any) -> bytes:
    stream = io.BytesIO()
    write_message(stream, kind, content)
    return stream.getvalue()


def framed(header: Any) -> bytes:
    encoded = json.dumps(header).encode()
    return LENGTH.pack(len(encoded)) + encoded


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("done", INFO), ("output", CLIP), ("output", dataclasses.replace(CLIP, video=None)), ("progress", None),
        ("output", Damage(0.0, 1.0, "müll \n")), ("rejected", Refusal("damaged", "why")), ("done", "pyav"),
        ("done", b"\0" * 100), ("done", 0.1), ("done", 7), ("done", False), ("ready", ""),
    ],
)  # fmt: skip
def test_comes_through_as_it_is(kind: str, content: Any) -> None:
    got = received(sent(kind, content))
    assert got == (kind, content)
    assert type(got[1]) is type(content)


def test_what_is_no_plain_value_is_not_sent() -> None:
    for content in (object(), (b"x", object()), {"a": {1}}):
        with pytest.raises(TypeError):
            sent("done", content)


def test_every_float_keeps_its_bits() -> None:
    for value in (0.1, 1 / 3, 2**40 - 1 / 3, 1e-18):
        assert received(sent("done", value)) == ("done", value)


def changed(facts: Any, **fields: Any) -> Any:
    return {type(facts).__name__: {**vars(facts), **fields}}


VIDEO = dict(vars(CLIP), video=None)


@pytest.mark.parametrize(
    "content",
    [
        *(changed(INFO, **{name: 0}) for name in ("width", "height", "pixel_aspect")),
        *(changed(INFO, **{name: -1}) for name in vars(INFO)),
        *(changed(INFO, **{name: None}) for name in vars(INFO)),
        *(changed(INFO, fps=value) for value in (1e300, 1e-300, 1e13, 2**70)),
        *(changed(INFO, duration_seconds=value) for value in (1e300, 1e-300, 1e13, 2**70)),
        *(changed(INFO, **{name: float("inf")}) for name in ("fps", "duration_seconds", "missing_seconds")),
        changed(INFO, width=2**31), changed(INFO, width=64.0), changed(INFO, width=True), changed(INFO, mirrored=1),
        changed(INFO, rotation=45), changed(INFO, codec="\ud800"), changed(INFO, codec=["h264"]), changed(INFO, more=1),
        {"VideoInfo": {"width": 1}}, {"VideoInfo": []}, {"VideoInfo": vars(INFO), "Damage": {}}, {}, {"Known": {}},
        {"StoredClip": {**VIDEO, "end_seconds": -0.5}}, {"StoredClip": {**VIDEO, "start_seconds": 3.0}},
        {"StoredClip": {**VIDEO, "num_frames": 0}}, {"StoredClip": {**VIDEO, "width": 0}},
        {"StoredClip": {**VIDEO, "video": {"bytes": 101}}}, {"StoredClip": {**VIDEO, "video": {"bytes": -1}}},
        {"StoredClip": {**VIDEO, "video": {"bytes": True}}}, {"StoredClip": {**VIDEO, "video": "text"}},
        {"StoredClip": {**VIDEO, "video": {"bytes": 0, "VideoInfo": {}}}},
        {"Damage": {"start_seconds": 2.0, "end_seconds": 1.0, "message": ""}},
        {"Refusal": {"reason": "damaged", "message": ""}}, {"bytes": 101}, {"bytes": 1.0}, [], [[1]],
    ],
)  # fmt: skip
def test_what_no_working_child_sends_is_refused(content: Any) -> None:
    with pytest.raises(MessageError):
        received(framed(["done", content]) + b"x" * 200)


@pytest.mark.parametrize(
    "header", [None, 1, [], ["done"], ["done", 1, 2], [1, 1], [["done"], 1], {"done": 1}, ["finished", 1]]
)
def test_a_header_is_a_kind_and_content(header: Any) -> None:
    with pytest.raises(MessageError):
        received(framed(header))


@pytest.mark.parametrize("reason", ["timeout", "disk_full", "crashed", "a reason", "a\n", "", "A", "x" * 33])
def test_a_child_has_its_own_reasons_alone(reason: str) -> None:
    with pytest.raises(MessageError):
        received(framed(["rejected", {"Refusal": {"reason": reason, "message": ""}}]))
    with pytest.raises(MessageError):
        received(framed(["rejected", "damaged"]))


def of_length(length: int, begin: str, middle: str, end: str = "") -> bytes:
    text = begin + middle * ((length - len(begin) - len(end)) // len(middle)) + end
    return LENGTH.pack(len(text)) + text.encode()


@pytest.mark.parametrize(
    ("begin", "middle"),
    [
        ('["done",', "["), ('["done",', '{"a":'), ('["done",', '{"VideoInfo":'), ('["done",', "9"), ('["done",1e', "9"),
        ('["done",[', "9" * 4300 + ","), ('["done",[', "[],"), ('["done",[', "{},"), ("", "\0"),
        ('["done","', "\\ud800"),
    ],
)  # fmt: skip
def test_a_message_costs_by_its_length(begin: str, middle: str) -> None:
    """The largest header that is read takes a fraction of a second and a few megabytes, whatever it nests."""
    messages = [of_length(MOST_HEADER_BYTES, begin, middle)]
    if middle.endswith(","):
        messages.append(of_length(MOST_HEADER_BYTES, begin, middle, "0]]"))
    for message in messages:
        tracemalloc.start()
        began = time.process_time()
        with pytest.raises(MessageError):
            received(message)
        elapsed, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert elapsed < 1
        assert peak < 2**24


def test_bytes_are_announced_and_bounded_together() -> None:
    asked: list[int] = []

    def read(length: int) -> bytes:
        asked.append(length)
        return framed(["done", {"VideoInfo": {**vars(INFO), "codec": {"bytes": 60}, "container": {"bytes": 60}}}])[
            sum(asked[:-1]) :
        ][:length]

    with pytest.raises(MessageError):
        READER.read(read)
    assert sum(asked[2:]) <= 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["bytes", "VideoInfo", "Damage", *vars(INFO)]), inner)
    ),
)
FACTS = st.fixed_dictionaries(dict.fromkeys(vars(INFO), JSON))
HEADERS = st.tuples(
    st.sampled_from(["done", "rejected", "output"]), JSON | st.builds(lambda f: {"VideoInfo": f}, FACTS)
)


def _is_plain(content: object) -> bool:
    if isinstance(content, (*CLASSES, Refusal)):
        return all(isinstance(part, bool | int | float | str | bytes | None) for part in vars(content).values())
    return content is None or type(content) in (bool, int, float, str, bytes)


def _reads_or_refuses(message: bytes) -> None:
    try:
        kind, content = received(message)
    except (MessageError, EOFError):
        return
    assert kind in ("ready", "progress", "output", "done", "rejected")
    assert _is_plain(content)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_data_or_refused(message: bytes) -> None:
    _reads_or_refuses(message)
    _reads_or_refuses(LENGTH.pack(len(message)) + message)


@given(HEADERS, st.binary(max_size=120))
def test_arbitrary_headers_are_data_or_refused(header: Any, behind: bytes) -> None:
    _reads_or_refuses(framed(header) + behind)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_messages_are_data_or_refused(at: int, damage: bytes) -> None:
    message = sent("output", CLIP)
    _reads_or_refuses(message[:at] + damage + message[at + len(damage) :])
