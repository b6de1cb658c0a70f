"""Requests to a child: the whole answer in order, a reason for every failure, a new child for every lost one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.decode.child_process import ROOT, IsolatedService
from pipeline.decode.config import DecodeConfig, DecodeError
from tests.support.echoing_child import Count, Fail, Grow, Work

CHILD = "tests.support.echoing_child"


@pytest.fixture
def service() -> Iterator[IsolatedService]:
    with IsolatedService(CHILD, DecodeConfig(deadline_seconds=0.5)) as service:
        yield service


def process_of(service: IsolatedService) -> int:
    assert service._child is not None
    return service._child.process_id


def reason(service: IsolatedService, request: object) -> str:
    with pytest.raises(DecodeError) as caught:
        list(service.answers("video.mp4", request))
    return caught.value.reason


def test_parts_of_an_answer_come_in_order_and_the_result_last(service: IsolatedService) -> None:
    assert list(service.answers("video.mp4", Count(3))) == [0, 1, 2, 3]
    assert list(service.answers("video.mp4", Count(0))) == [0]
    assert list(service.answers("video.mp4", Work(0, reports=False))) == [os.path.abspath("video.mp4")]


def test_an_abandoned_answer_is_not_taken_for_the_next_one(service: IsolatedService) -> None:
    parts = service.answers("video.mp4", Count(100))
    assert next(parts) == 0
    parts.close()  # type: ignore[attr-defined]  # a generator, which its callers need not know
    assert list(service.answers("video.mp4", Count(2))) == [0, 1, 2]
    assert service.children_lost == 0


def test_reports_extend_the_deadline(service: IsolatedService) -> None:
    """Of 0.5 s, while 1.5 s of work are reported in steps; unreported work is killed."""
    list(service.answers("video.mp4", Count(1)))
    assert list(service.answers("video.mp4", Work(1.5, reports=True)))
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
    assert list(service.answers("video.mp4", Count(1))) == [0, 1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_child_is_replaced(service: IsolatedService, sign: signal.Signals) -> None:
    list(service.answers("video.mp4", Count(1)))
    dead = process_of(service)
    os.kill(dead, sign)
    with pytest.raises(DecodeError, match=f"crashed: the decoder died of {sign.name}"):
        list(service.answers("video.mp4", Count(1)))
    assert list(service.answers("video.mp4", Count(1))) == [0, 1]
    assert process_of(service) != dead


def test_children_are_replaced_when_they_are_old() -> None:
    children = set()
    with IsolatedService(CHILD, DecodeConfig(videos_per_child=2)) as service:
        for _ in range(3):
            list(service.answers("video.mp4", Count(1)))
            children.add(process_of(service))
            list(service.answers("video.mp4", Count(1)))
            assert service._child is None
    assert len(children) == 3
    assert service.children_lost == 0


def test_children_are_replaced_when_they_have_grown() -> None:
    with IsolatedService(CHILD, DecodeConfig(memory_bytes=2**28)) as service:
        list(service.answers("video.mp4", Grow(2**20)))
        assert service._child is not None
        list(service.answers("video.mp4", Grow(2**27)))
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
