"""Groups of workers that follow each other, from the driver's side: how a run ends between them. No Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.exceptions
import moto
import pytest
import tenacity
from ray.exceptions import ActorDiedError
from ray.train import TrainingFailedError

from jobs.checkpoints.store import Checkpoint, Cursor, discard_after, write_checkpoint
from jobs.core.config import load_config
from jobs.core.errors import StopRequestedError, TrainingStoppedError
from jobs.runs.fencing import FencingToken, SupersededError, acquire_token
from jobs.training import elastic as worker_groups
from jobs.training.job import TrainingJob
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from pipeline.shards.reader import PreparedSet
from pipeline.storage import retry, s3
from pipeline.storage.files import StorageError

Group = Callable[[], None]
BIG = ["micro_batch=64", "global_batch=512", "workers=8", "decode_actors=16", "view.repeats=1"]


class FakeWatchdog:
    """Has no coordinator; the test says when a stop is requested."""

    lost: TrainingStoppedError | None = None
    host_announced = False
    reported: dict[str, Any] | None = None

    def __init__(self, *_args: Any, **_keys: Any) -> None:
        self.stop_requested = False
        self.lines: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        yield

    def begin(self, _token: FencingToken, _workers: int, _step: int) -> None:
        pass

    def pause(self) -> None:
        pass

    def result(self) -> dict[str, Any] | None:
        return self.reported

    def log(self, line: str) -> None:
        self.lines.append(line)


class Run:
    """A training run whose groups of workers are functions of the test."""

    def __init__(self, output: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watchdog = FakeWatchdog()
        self.groups: list[Group] = []
        self.output = str(output)
        capacity = SimpleNamespace(requested=self.watchdog.watching, wait=self.wait, gpus=False)
        monkeypatch.setattr(worker_groups, "Watchdog", lambda *_, **__: self.watchdog)
        monkeypatch.setattr(worker_groups, "WorkerCapacity", lambda *_: capacity)
        monkeypatch.setattr(worker_groups, "_run_group", lambda *_: self.groups.pop(0)())

    def wait(self, _seconds: float, *, given_up: Callable[[], bool], **_keys: Any) -> int:
        return 0 if given_up() else 1

    def save(self, step: int) -> None:
        write_checkpoint(self.output, Checkpoint(step, 8 * step, {}, {}))

    def ask_to_stop(self) -> None:
        self.watchdog.stop_requested = True

    def job(self) -> TrainingJob:
        keys = [
            "data=d",
            f"output={self.output}",
            "steps=4",
            "model=mae_hiera_test_8x64",
            "max_failures=1",
            "mask_ratio=0.75",
        ]
        config = load_config(PretrainConfig, "pretrain", keys)
        prepared = PreparedSet("d", 1, "digest", (), (), {})
        return TrainingJob("pretrain", "key", config, PretrainPhase(config), prepared, 4, 0, 1)

    def train(self, *groups: Group) -> FencingToken:
        self.groups = list(groups)
        return worker_groups.train(
            self.job(), acquire_token(self.output), SimpleNamespace(run_id=None, refresh_known_steps=bool)
        )  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path / "run", monkeypatch)


def in_turn(*steps: Group) -> Group:
    def group() -> None:
        for step in steps:
            step()

    return group


def lose_the_controller() -> None:
    raise ActorDiedError


def die() -> None:
    raise TrainingFailedError("workers died")


def test_asked_to_stop_and_then_dead_is_still_a_stop_on_request(run: Run) -> None:
    with pytest.raises(StopRequestedError, match="saved at step 2 of 4; the same command resumes"):
        run.train(in_turn(partial(run.save, 2), run.ask_to_stop, die))


def test_asked_to_stop_while_waiting_for_room(run: Run) -> None:
    with pytest.raises(StopRequestedError, match="saved at step 3 of 4"):
        run.train(in_turn(partial(run.save, 3), run.ask_to_stop))


def test_asked_to_stop_before_anything_is_saved_is_no_success(run: Run) -> None:
    with pytest.raises(TrainingStoppedError, match="before the first checkpoint"):
        run.train(in_turn(run.ask_to_stop, die))


def test_a_lost_lease_counts_for_more_than_a_stop(run: Run) -> None:
    run.watchdog.lost = SupersededError("a later start has taken over")
    with pytest.raises(SupersededError, match="taken over"):
        run.train(in_turn(partial(run.save, 2), run.ask_to_stop, die))


def failing(times: int, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Storage that fails so often from now on."""
    real, left = worker_groups.newest_cursor, [times]

    def newest_cursor(output: str) -> Cursor:
        left[0] -= 1
        if left[0] >= 0:
            raise StorageError(output, "answered 503", "try again")
        return real(output)

    return lambda: monkeypatch.setattr(worker_groups, "newest_cursor", newest_cursor)


def test_a_controller_that_dies_is_a_failure_like_a_workers(run: Run) -> None:
    """Ray hands its death on as it comes, not as an error of training."""
    assert run.train(in_turn(partial(run.save, 2), lose_the_controller), partial(run.save, 4)).generation == 3
    discard_after(run.output, 0)
    with pytest.raises(TrainingStoppedError, match=r"workers died .*failure 2"):
        run.train(lose_the_controller, lose_the_controller)


def test_failures_with_a_checkpoint_between_them_are_not_counted_together(run: Run) -> None:
    """`max_failures` is 1 here: three groups die, but never two without progress."""
    groups = [in_turn(partial(run.save, step), die) for step in (1, 2, 3)]
    assert run.train(*groups, partial(run.save, 4)).generation == 5
    assert [line.partition("; failure ")[2] for line in run.watchdog.lines] == [
        "1 since the last checkpoint); resuming from the last checkpoint"
    ] * 3


def test_workers_lost_with_a_host_that_was_announced_are_no_failure(run: Run) -> None:
    """`max_failures` is 1 here, and nothing is saved in between."""
    run.watchdog.host_announced = True
    assert run.train(die, die, die, partial(run.save, 4)).generation == 5


def test_a_rank_that_reported_why_it_dies_is_not_replaced(run: Run) -> None:
    run.watchdog.reported = {"step": 2, "stopped": False, "failure": "micro_batch=64: does not fit"}
    with pytest.raises(TrainingStoppedError, match=r"^micro_batch=64: does not fit$"):
        run.train(in_turn(partial(run.save, 2), die))


def test_storage_lost_between_groups_is_no_mistake_of_the_user(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingStoppedError, match=r"answered 503.*the checkpoints are kept"):
        run.train(in_turn(partial(run.save, 2), failing(100, monkeypatch), die))


class FlakyClient:
    """A client whose next requests fail, as while a gateway restarts."""

    def __init__(self, client: Any) -> None:
        self.client, self.failures, self.failed = client, 0, 0

    def __getattr__(self, name: str) -> Any:
        if self.failed < self.failures:
            self.failed += 1
            raise botocore.exceptions.EndpointConnectionError(endpoint_url="http://store")
        return getattr(self.client, name)


@pytest.mark.ray  # needs moto
def test_a_storage_failure_between_groups_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        store = FlakyClient(boto3.client("s3", region_name="us-east-1"))
        store.create_bucket(Bucket="bucket")
        monkeypatch.setattr(s3, "s3_client", lambda: store)
        run = Run("s3://bucket/run", monkeypatch)
        fail_twice = partial(setattr, store, "failures", 2)
        assert run.train(in_turn(partial(run.save, 2), fail_twice, die), partial(run.save, 4)).generation == 3
        assert store.failed == 2


@pytest.mark.parametrize(("keys", "workers", "gib"), [([], 1, 2.0), (BIG, 8, 4 * 24 * 64 * 16 * 224**2 * 3 / 2**30)])
def test_reading_ahead_has_room_for_every_decoder_and_worker(keys: list[str], workers: int, gib: float) -> None:
    config = load_config(PretrainConfig, "pretrain", ["data=d", "output=o", "steps=1", *keys])
    assert worker_groups.read_ahead_bytes(config, workers) / 2**30 == pytest.approx(gib)


@pytest.mark.parametrize(
    ("hosts", "micro_batch", "half"), [(None, 3000, "3.0"), (["a"], 1, "0.5"), (["b", "a"], 1, "0.5")]
)
def test_an_object_store_too_small_to_read_ahead_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, hosts: list[str] | None, micro_batch: int, half: str
) -> None:
    """Two GiB at least: the store of the host that a stream is pinned to counts, of one that is not, those of all."""
    stores = {"a": 2**30, "b": 5 * 2**30}
    offered = {host: {"object_store_memory": size} for host, size in stores.items()}
    monkeypatch.setattr(worker_groups, "offered_by_host", lambda: offered)
    config = replace(run.job().config, micro_batch=micro_batch, global_batch=micro_batch)
    worker_groups._log_streams(replace(run.job(), config=config), run.watchdog, hosts, 1)  # type: ignore[arg-type]
    (told,) = [line for line in run.watchdog.lines if "object store" in line]
    assert f"half of the object store is {half}" in told


def test_what_is_not_normal_about_streams_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"CPU": 0.0, "object_store_memory": 2.0**40}
    roomy = head | {"CPU": 8.0}
    offered = {"a": roomy, "head": head}
    monkeypatch.setattr(worker_groups, "offered_by_host", lambda: offered)
    worker_groups._log_streams(run.job(), run.watchdog, ["a", "a"], 2)  # type: ignore[arg-type]
    worker_groups._log_streams(run.job(), run.watchdog, None, 2)  # type: ignore[arg-type]
    assert run.watchdog.lines == []
    offered["b"] = roomy
    worker_groups._log_streams(run.job(), run.watchdog, ["a", "b"], 2)  # type: ignore[arg-type]
    worker_groups._log_streams(run.job(), run.watchdog, None, 2)  # type: ignore[arg-type]
    streams, one = run.watchdog.lines
    assert streams == "a data stream on each of 2 hosts"
    assert "workers=2, decode_actors=2: the hosts of the workers lack CPUs" in one
