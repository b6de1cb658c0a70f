"""Requests to a child: the whole answer in order, a reason for every failure, a new child for every lost one."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.confinement.memory import SharedPixels
from pipeline.confinement.messages import LENGTH, MOST_HEADER_BYTES
from pipeline.decode import child_process
from pipeline.decode.child_process import MOST_DEADLINES, ROOT, IsolatedService
from pipeline.decode.config import DecodeConfig, DecodeError
from tests.support.echoing_child import (
    ATTACKS,
    Attack,
    Burn,
    Count,
    Environment,
    Fail,
    Grow,
    Known,
    Read,
    Send,
    SendPart,
    Work,
)

CHILD = "tests.support.echoing_child"
VIDEO = __file__  # the children of these tests do not look at it


@pytest.fixture
def service() -> Iterator[IsolatedService]:
    with IsolatedService(CHILD, DecodeConfig(deadline_seconds=0.5)) as service:
        yield service


def process_of(service: IsolatedService) -> int:
    assert service._child is not None
    return service._child.process_id


def reason(service: IsolatedService, request: object) -> str:
    with pytest.raises(DecodeError) as caught:
        list(service.answers(VIDEO, request))
    return caught.value.reason


def test_parts_of_an_answer_come_in_order_and_the_result_last(service: IsolatedService) -> None:
    assert list(service.answers(VIDEO, Count(3))) == [0, 1, 2, 3]
    assert list(service.answers(VIDEO, Count(0))) == [0]
    assert list(service.answers(VIDEO, Work(0.0, reports=False))) == [0.0]


def test_an_abandoned_answer_is_not_taken_for_the_next_one(service: IsolatedService) -> None:
    parts = service.answers(VIDEO, Count(100))
    assert next(parts) == 0
    parts.close()  # type: ignore[attr-defined]  # a generator, which its callers need not know
    assert list(service.answers(VIDEO, Count(2))) == [0, 1, 2]
    assert service.children_lost == 0


def test_reports_extend_the_deadline(service: IsolatedService) -> None:
    """Of 0.5 s, while 1.5 s of work are reported in steps; unreported work is killed."""
    list(service.answers(VIDEO, Count(1)))
    assert list(service.answers(VIDEO, Work(1.5, reports=True)))
    began = time.monotonic()
    assert reason(service, Work(60, reports=False)) == "timeout"
    assert time.monotonic() - began < 10
    assert service.children_lost == 1


@pytest.mark.parametrize(
    ("error", "expected", "lost"),
    [
        ("refused", "max_pixels", 0),
        ("memory", "out_of_memory", 0),
        ("library", "damaged", 0),
        ("mistake", "crashed", 1),
    ],
)
def test_every_failure_has_its_reason(service: IsolatedService, error: str, expected: str, lost: int) -> None:
    assert reason(service, Fail(error)) == expected
    assert service.children_lost == lost
    assert list(service.answers(VIDEO, Count(1))) == [0, 1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_child_is_replaced(service: IsolatedService, sign: signal.Signals) -> None:
    list(service.answers(VIDEO, Count(1)))
    dead = process_of(service)
    os.kill(dead, sign)
    with pytest.raises(DecodeError, match=f"crashed: the decoder died of {sign.name}"):
        list(service.answers(VIDEO, Count(1)))
    assert list(service.answers(VIDEO, Count(1))) == [0, 1]
    assert process_of(service) != dead


def test_children_are_replaced_when_they_are_old() -> None:
    children = set()
    with IsolatedService(CHILD, DecodeConfig(videos_per_child=2)) as service:
        for _ in range(3):
            list(service.answers(VIDEO, Count(1)))
            children.add(process_of(service))
            list(service.answers(VIDEO, Count(1)))
            assert service._child is None
    assert len(children) == 3
    assert service.children_lost == 0


def test_children_are_replaced_when_they_have_grown() -> None:
    with IsolatedService(CHILD, DecodeConfig(memory_bytes=2**28)) as service:
        list(service.answers(VIDEO, Grow(2**20)))
        assert service._child is not None
        list(service.answers(VIDEO, Grow(2**27)))
        assert service._child is None
        assert reason(service, Grow(2**28)) == "out_of_memory"


def test_a_child_ends_with_its_service() -> None:
    with IsolatedService(CHILD, DecodeConfig()) as service:
        process = process_of(service)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("module", ["pipeline.decode.child", "pipeline.transcode.child"])
def test_a_child_imports_neither_ray_nor_anything_else_that_starts_slowly(module: str) -> None:
    """Ray alone takes 1.5 s; a child is to start in 0.2."""
    source = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-P", "-c", source], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in printed.split()}
    assert {"pipeline", "av", "numpy"} <= loaded
    assert not loaded & {"ray", "torch", "pyarrow", "pandas", "boto3", "botocore", "jobs", "hiera_video"}
    assert "pipeline.storage" not in printed.split()


def test_a_child_has_no_keys(service: IsolatedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever name: it gets what it needs, not what is left of everything."""
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "SOME_OTHER_KEY"):
        monkeypatch.setenv(name, "secret")
    with IsolatedService(CHILD, DecodeConfig()) as started_with_keys:
        names = started_with_keys.answer(VIDEO, Environment(), str).split()
    assert "OMP_NUM_THREADS" in names
    assert not [name for name in names if name.startswith(("AWS", "MLFLOW", "RAY", "SOME"))]


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_child_that_was_taken_over_gets_nowhere(kind: str, service: IsolatedService, tmp_path: Path) -> None:
    """It meets an error instead, and the parent, whose memory it shares, lives."""
    path = tmp_path / "file"
    path.write_text("private")
    shared = SharedPixels()
    shared.reserve(4096)
    expected = "RuntimeError" if kind == "thread" else "PermissionError"
    assert list(service.answers(VIDEO, Attack(kind, str(path)), [shared.file])) == [expected]
    assert path.read_text() == "private"
    assert shared.pixels[0] == (7 if kind == "shrink the memory" else 0)
    shared.close()


def test_a_child_reads_the_file_that_it_was_given(service: IsolatedService, tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(b"its bytes")
    assert service.answer(path, Read(), bytes) == b"its bytes"


def test_where_the_kernel_refuses_a_filter_it_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child_process._warn_once.cache_clear()
    for _ in range(2):
        child_process._warn_unconfined(("ready", "seccomp: Function not implemented"))
        child_process._warn_unconfined(("ready", ""))
    assert [record.getMessage() for record in caplog.records] == [
        "videos are decoded in a process without a filter of system calls (seccomp: Function not implemented); "
        "see SECURITY.md"
    ]


def test_what_is_no_file_is_not_opened(service: IsolatedService, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    found = {}
    for path in tmp_path.iterdir():
        with pytest.raises(DecodeError) as refusal:
            list(service.answers(path, Count(1)))
        found[path.name] = refusal.value.reason
    assert found.pop("dangling") == "missing"
    assert set(found.values()) == {"not_a_file"}
    assert len(found) == 4
    assert service.children_lost == 0


@pytest.mark.parametrize("pause", [60.0, 0.2])
def test_a_message_that_never_ends_meets_a_deadline(pause: float) -> None:
    """Nor does one of which a byte comes now and then."""
    with IsolatedService(CHILD, DecodeConfig(deadline_seconds=0.1)) as service:
        began = time.monotonic()
        assert reason(service, SendPart(pause)) == "timeout"
        assert time.monotonic() - began < 15


def test_progress_without_end_has_an_end() -> None:
    """CPU seconds are counted over all steps of one video."""
    with IsolatedService(CHILD, DecodeConfig(deadline_seconds=0.5, max_cpu_seconds=0.5)) as service:
        began = time.monotonic()
        assert reason(service, Burn()) == "max_cpu_seconds"
        elapsed = time.monotonic() - began
        # A tenth of the time on the clock counts too: it ends the child where others keep the processor busy.
        assert max(service.cpu_seconds, elapsed / MOST_DEADLINES) > 0.5
        assert service.cpu_seconds <= elapsed + 0.1  # one thread; the kernel counts in hundredths
        assert elapsed < 15
        assert list(service.answers(VIDEO, Count(1))) == [0, 1]


class Runs:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def framed(header: str) -> bytes:
    return LENGTH.pack(len(header)) + header.encode()


# What unpickling makes a GiB of, and what it makes 2^24 references of.
PICKLED_BOMB = b"\x80\x04\x8c\x04doneNr" + struct.pack("<I", 2**26) + b"\x86."
PICKLED_PYRAMID = b"\x80\x04\x8c\x04done)" + b"2\x86" * 24 + b"\x86."


@pytest.mark.parametrize(
    "message",
    [
        "code", "framed code", "a bomb", "a framed bomb", "a pyramid", "a framed pyramid", "bytes", "a long header",
        "more bytes than allowed", "a list", "deep lists", "unknown class", "unknown kind", "the greeting again",
        "a field of another type", "a negative number", "not a number", "many digits", "the parent's reason",
    ],
)  # fmt: skip
def test_what_a_child_sends_is_data(message: str, tmp_path: Path) -> None:
    """Whatever it is, the parent answers within the time of a message, and has not grown. `test_messages` has more."""
    ran = tmp_path / "ran"
    code = pickle.dumps(("done", Runs(ran)))
    contents = {
        "code": code,
        "framed code": LENGTH.pack(len(code)) + code,
        "a bomb": PICKLED_BOMB,
        "a framed bomb": LENGTH.pack(len(PICKLED_BOMB)) + PICKLED_BOMB,
        "a pyramid": PICKLED_PYRAMID,
        "a framed pyramid": LENGTH.pack(len(PICKLED_PYRAMID)) + PICKLED_PYRAMID,
        "bytes": b"\xff" * 40,
        "a long header": framed('["done", "' + "x" * MOST_HEADER_BYTES + '"]'),
        "more bytes than allowed": framed('["done", {"bytes": 2000000000}]') + b"x" * 2**20,
        "a list": framed('["done", [1]]'),
        "deep lists": framed('["done", ' + "[" * 30_000 + "]" * 30_000 + "]"),
        "unknown class": framed('["done", {"Count": {"parts": 1}}]'),
        "unknown kind": framed('["finished", 1]'),
        "the greeting again": framed('["ready", ""]'),
        "a field of another type": framed('["done", {"Known": {"number": "1"}}]'),
        "a negative number": framed('["done", {"Known": {"number": -1}}]'),
        "not a number": framed('["done", {"Known": {"number": NaN}}]'),
        "many digits": framed('["done", {"Known": {"number": ' + "9" * 60_000 + "}}]"),
        "the parent's reason": framed('["rejected", {"Refusal": {"reason": "disk_full", "message": ""}}]'),
    }
    with IsolatedService(CHILD, DecodeConfig(), (Known,)) as service:
        list(service.answers(VIDEO, Count(1)))
        began, largest_before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert reason(service, Send(contents[message])) == "crashed"
        assert time.monotonic() - began < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - largest_before < 2**14  # KiB
        assert service.children_lost == 1
        assert list(service.answers(VIDEO, Count(1))) == [0, 1]
    assert not ran.exists()


def test_a_class_that_is_named_comes_through() -> None:
    with IsolatedService(CHILD, DecodeConfig(), (Known,)) as service:
        parts = service.answers(VIDEO, Send(framed('["output", {"Known": {"number": 3}}]')))
        assert next(parts) == Known(3)
        parts.close()  # type: ignore[attr-defined]  # a generator, which its callers need not know
