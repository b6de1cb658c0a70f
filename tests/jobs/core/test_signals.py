"""What ends a command on the way, and that nothing else is changed by it."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
import ray
from ray.exceptions import RayError

from jobs.core import ray_cluster as cluster
from jobs.core.errors import StopRequestedError, WorkStoppedError
from jobs.core.signals import keeping_finished_work, sigterm_delayed, stopping_on_sigterm
from pipeline.storage.files import StorageError


def test_sigterm_ends_the_work_and_the_handler_comes_back() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StopRequestedError, match="chunks are kept"), keeping_finished_work("chunks are kept"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_request_that_compiled_code_turns_into_an_error_of_its_own_is_still_one() -> None:
    def compiled() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except StopRequestedError as error:
            raise SystemError("returned a result with an exception set") from error

    with pytest.raises(StopRequestedError, match="chunks are kept"), keeping_finished_work("chunks are kept"):
        compiled()


@pytest.mark.parametrize("exits", [False, True])
def test_starting_ray_leaves_the_program_its_handler(monkeypatch: pytest.MonkeyPatch, exits: bool) -> None:
    def start_ray(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        if exits:
            os.kill(os.getpid(), signal.SIGTERM)

    def start_and_be_asked() -> None:
        cluster.connect()
        assert not exits
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start_ray)
    with pytest.raises(StopRequestedError), stopping_on_sigterm("chunks are kept"):
        start_and_be_asked()


@pytest.mark.parametrize("error", [StorageError("s3://bucket/x", "answered 503", "try again"), RayError("a node died")])
def test_what_fails_on_the_way_is_no_mistake_of_the_user(error: Exception) -> None:
    told = r"(answered 503|a node died).*chunks are kept"
    with pytest.raises(WorkStoppedError, match=told), keeping_finished_work("chunks are kept"):
        raise error


def test_mistakes_go_through_unchanged() -> None:
    with pytest.raises(ValueError, match="seed=x"), keeping_finished_work("chunks are kept"):
        raise ValueError("seed=x")


def test_a_thread_cannot_handle_signals_and_works_all_the_same() -> None:
    done = []

    def work() -> None:
        with keeping_finished_work("chunks are kept"):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_delayed_sigterm_comes_when_the_block_has_ended() -> None:
    done = []

    def work() -> None:
        with sigterm_delayed():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("first")
        done.append("second")

    with pytest.raises(StopRequestedError), stopping_on_sigterm("chunks are kept"):
        work()
    assert done == ["first"]


def test_without_a_sigterm_delaying_changes_nothing() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with sigterm_delayed():
        pass
    assert signal.getsignal(signal.SIGTERM) is handler
