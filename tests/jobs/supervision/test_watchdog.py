"""The driver's watchdog: what blocks or fails must not end it, and it reports what cannot continue. No Ray."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RpcError

from jobs.core.errors import TrainingStoppedError
from jobs.runs.fencing import FencingToken, SupersededError, acquire_token
from jobs.supervision import watchdog as module
from jobs.supervision.coordinator import Activity, Coordinator, Heartbeat, Line, StopReason
from jobs.supervision.watchdog import Watchdog
from tests.support.events import events


class FakeRay:
    """Calls the coordinator at once; ``failure`` is raised where an answer is fetched."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.draining: frozenset[str] = frozenset()
        self.actors: dict[str, str] = {}
        self.coordinator = Coordinator()
        methods = ("begin", "take", "request", "stop_request", "result")
        self.handle = SimpleNamespace(
            **{name: SimpleNamespace(remote=getattr(self.coordinator, name)) for name in methods}
        )

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    def remote(self, **_options: Any) -> Callable[[type], Any]:
        actor = SimpleNamespace(remote=lambda: self.handle)
        return lambda _class: SimpleNamespace(options=lambda **_options: actor)

    def get(self, answer: Any) -> Any:
        if self.failure:
            raise self.failure
        return answer


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "draining_hosts", lambda: fake.draining)
    monkeypatch.setattr(module, "hosts_of_actors", lambda: dict(fake.actors))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_TOKEN_CHECKS", 0.01)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SIZE_CHECKS", 0.0)
    return fake


class Killed(list[int]):
    """The ranks that the watchdog ended."""

    def take(self, signs: Any) -> dict[int, str]:
        self.extend(sign.rank for sign in signs)
        return dict.fromkeys(self, "")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Killed:
    ended = Killed()
    monkeypatch.setattr(module, "take_all_stacks", ended.take)
    return ended


@contextmanager
def watch_over(
    token: FencingToken,
    *,
    hang_minutes: float = 60,
    saving_minutes: float = 60,
    on_steps: Callable[[list[dict[str, Any]]], None] = lambda _lines: None,
) -> Iterator[Watchdog]:
    capacity: Any = SimpleNamespace(has=lambda _workers: True, may_grow=lambda _workers: False)
    limits = {"hang_minutes": hang_minutes, "saving_minutes": saving_minutes}
    watchdog = Watchdog("test", 10, capacity=capacity, on_steps=on_steps, **limits)
    former = signal.getsignal(signal.SIGTERM)
    with watchdog.watching():
        watchdog.begin(token, 1, 0)
        yield watchdog
    assert signal.getsignal(signal.SIGTERM) is former


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def sign(activity: Activity) -> Heartbeat:
    return Heartbeat(0, "host", "node", 1, "", step=4, activity=activity)


@pytest.fixture
def token(tmp_path: Path) -> FencingToken:
    return acquire_token(str(tmp_path))


def test_saving_has_its_own_limit_and_is_watched_too(ray: FakeRay, killed: Killed, token: FencingToken) -> None:
    began = time.monotonic()
    with watch_over(token, hang_minutes=1e-4, saving_minutes=0.005):
        ray.coordinator.beat(token.generation, sign(Activity.SAVING))
        wait_until(lambda: killed)
        assert time.monotonic() - began >= 60 * 0.005
    assert killed[0] == 0


def test_a_rank_that_never_gave_a_sign_is_named(
    ray: FakeRay, killed: Killed, token: FencingToken, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch_over(token, hang_minutes=0.002) as watchdog:
        wait_until(lambda: "no heartbeat of any worker" in capsys.readouterr().err)
        watchdog.begin(token, 2, 0)
        ray.coordinator.beat(token.generation, sign(Activity.BACKWARD))
        wait_until(lambda: killed)
        wait_until(lambda: "slow: rank 1: never sent a heartbeat;" in capsys.readouterr().err)


def test_what_an_older_group_posts_does_not_count() -> None:
    coordinator = Coordinator()
    coordinator.begin(2, 4)
    coordinator.post(2, "", 5, {"step": 5})
    coordinator.post(1, "a warning", 9, {"step": 9})
    assert coordinator.take() == ([Line("a warning", {"step": 9})], [{"step": 5}], 5, {})


def test_storage_that_blocks_does_not_end_the_watch(
    ray: FakeRay, killed: Killed, token: FencingToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FencingToken, "superseded_by", lambda _token: time.sleep(30))
    with watch_over(token, hang_minutes=0.002, saving_minutes=0.002):
        ray.coordinator.beat(token.generation, sign(Activity.SAVING))
        wait_until(lambda: killed)


def test_a_silent_cluster_and_a_torn_record_are_reported_once_and_the_watchdog_continues(
    ray: FakeRay, token: FencingToken, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with watch_over(token) as watchdog:
        ray.failure = RpcError("the head node does not answer")
        (tmp_path / "generations" / "00000002.json").write_text("{")
        wait_until(lambda: watchdog._warned)
        time.sleep(0.1)
        ray.failure = None
        watchdog._stop_requested.set()
        wait_until(lambda: ray.coordinator.stop_request() is StopReason.REQUESTED)
        ray.coordinator.post(token.generation, "", 7)
        wait_until(lambda: watchdog._steps == 7)
    assert capsys.readouterr().err.count("the watchdog continues after") == 1


def test_events_have_the_step_and_its_figures(
    ray: FakeRay, token: FencingToken, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIERA_LOG", "json")
    with watch_over(token) as watchdog:
        ray.coordinator.post(
            token.generation, "step 7/10  loss 0.5", 7, {"step": 7, "loss": 0.5, "sample_ids": ["a#0"]}
        )
        ray.coordinator.post(token.generation, "", 8, {"step": 8, "loss": 0.4})
        wait_until(lambda: watchdog._steps == 8)
        ray.coordinator.post(token.generation, "warning: slow storage", 8)
        ray.coordinator.post(token.generation, "", 9)
        wait_until(lambda: watchdog._steps == 9)
    begun, step, slow = events(capsys.readouterr().err)
    assert begun["message"] == f"generation {token.generation}: 1 worker from step 0 on"
    assert (step["event"], step["step"], step["message"]) == ("step", 7, "step 7/10  loss 0.5")
    assert step["fields"] == {"step": 7, "loss": 0.5}
    assert (slow["level"], slow["message"]) == ("warning", "slow storage")


def test_a_dead_coordinator_ends_the_workers_and_is_reported(ray: FakeRay, killed: Killed, token: FencingToken) -> None:
    with watch_over(token) as watchdog:
        ray.coordinator.beat(token.generation, sign(Activity.FORWARD))
        wait_until(lambda: watchdog._heartbeats)
        ray.failure = ActorDiedError()
        wait_until(lambda: killed)
    assert killed == [0]
    assert "the actor between driver and workers died" in str(watchdog.lost)


def fail_on_steps(lines: list[dict[str, Any]]) -> None:
    if lines:
        raise TypeError("no number")


def test_an_error_that_nobody_expects_stops_the_run_and_is_logged(
    ray: FakeRay, killed: Killed, token: FencingToken, capsys: pytest.CaptureFixture[str]
) -> None:
    """The workers save first, and are still watched meanwhile."""
    with watch_over(token, on_steps=fail_on_steps) as watchdog:
        ray.coordinator.post(token.generation, "", 3, {"step": 3})
        wait_until(lambda: ray.coordinator.stop_request() is StopReason.RESIZED)
        ray.coordinator.post(token.generation, "", 7, {"step": 7})
        wait_until(lambda: watchdog._steps == 7)
    assert isinstance(watchdog.lost, TrainingStoppedError)
    assert "the watchdog failed (TypeError: no number)" in str(watchdog.lost)
    assert not killed
    printed = capsys.readouterr().err
    assert printed.count("the watchdog failed: TypeError: no number; saving and stopping") == 1
    assert "in fail_on_steps" in printed


def test_a_watchdog_that_keeps_failing_ends_the_workers(
    ray: FakeRay, killed: Killed, token: FencingToken, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch_over(token) as watchdog:
        ray.coordinator.beat(token.generation, sign(Activity.FORWARD))
        wait_until(lambda: watchdog._heartbeats)
        ray.failure = TypeError("an answer of another form")
        wait_until(lambda: killed)
        ray.failure = None
    assert "an answer of another form" in str(watchdog.lost)


def test_last_steps_that_reach_nobody_are_no_success(ray: FakeRay, token: FencingToken) -> None:
    """They are taken once more when the workers have ended."""

    def end() -> None:
        with watch_over(token, on_steps=fail_on_steps) as watchdog:
            watchdog._ended.set()
            time.sleep(0.1)
            ray.coordinator.post(token.generation, "", 10, {"step": 10})

    with pytest.raises(TrainingStoppedError, match="TypeError: no number"):
        end()


def test_the_programs_own_next_attempt_is_no_loss(ray: FakeRay, token: FencingToken) -> None:
    """Between two groups the next generation is taken, and waiting for capacity may last."""
    with watch_over(token) as watchdog:
        watchdog.pause()
        following = token.next_generation()
        time.sleep(0.2)
        assert not watchdog.lost
        watchdog.begin(following, 1, 0)
        acquire_token(token.output)
        wait_until(lambda: watchdog.lost)
    assert isinstance(watchdog.lost, SupersededError)
    assert "a later start has taken over" in str(watchdog.lost)


def test_an_announced_host_lets_the_workers_save_and_continue_without_it(
    ray: FakeRay, token: FencingToken, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch_over(token) as watchdog:
        ray.coordinator.beat(token.generation, sign(Activity.FORWARD))
        ray.draining = frozenset({"a host without anything of this run"})
        time.sleep(0.1)
        assert not watchdog.host_announced
        ray.draining = frozenset({"node"})
        wait_until(lambda: ray.coordinator.stop_request() is StopReason.RESIZED)
        assert watchdog.host_announced
        assert not watchdog.stop_requested
        watchdog.pause()  # that group has saved and ended; the next one runs elsewhere
        watchdog.begin(token, 1, 4)
        assert not watchdog.host_announced
        assert ray.coordinator.stop_request() is StopReason.NONE
    assert "hosts are about to be taken away (ranks 0 on host): saving, and continuing" in capsys.readouterr().err


def test_an_announced_host_with_only_the_stream_is_left_too(
    ray: FakeRay, token: FencingToken, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch_over(token) as watchdog:
        ray.coordinator.beat(token.generation, sign(Activity.FORWARD))
        ray.actors = {"worker": "node", "reader": "other"}
        ray.draining = frozenset({"other"})
        wait_until(lambda: ray.coordinator.stop_request() is StopReason.RESIZED)
        assert watchdog.host_announced
        assert not watchdog.stop_requested
    assert "hosts are about to be taken away (data stream): saving" in capsys.readouterr().err


def test_what_the_last_group_left_on_an_announced_host_does_not_end_the_next_one(
    ray: FakeRay, token: FencingToken
) -> None:
    """Ray gives a host that is drained no new work, and ends the actors of a group some time after it."""
    with watch_over(token) as watchdog:
        ray.draining, ray.actors = frozenset({"other"}), {"reader": "other"}
        wait_until(lambda: watchdog.host_announced)
        watchdog.pause()
        watchdog.begin(token, 1, 4)
        ray.actors["worker"] = "node"
        time.sleep(0.1)
        assert not watchdog.host_announced
        assert ray.coordinator.stop_request() is StopReason.NONE
        ray.draining |= {"node"}
        wait_until(lambda: watchdog.host_announced)


def test_the_announced_end_of_the_commands_own_host_is_a_stop(ray: FakeRay, token: FencingToken) -> None:
    with watch_over(token) as watchdog:
        ray.draining = frozenset({"0" * 56})
        wait_until(lambda: ray.coordinator.stop_request() is StopReason.REQUESTED)
        assert watchdog.stop_requested
