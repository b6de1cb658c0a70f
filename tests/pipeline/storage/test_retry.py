"""One retry policy: requests and seconds stay within its budget at any nesting; definite answers are not retried."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pytest
import tenacity

from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.chunk import ChunkSettings, PrepareChunk, PrepareSettings
from pipeline.prepare.versions import read_versions
from pipeline.shards.reader import read_shard
from pipeline.shards.writer import StoreConfig
from pipeline.storage import files, retry
from pipeline.storage import s3 as object_storage
from pipeline.storage.delta import Change, Table, create_table, open_table, write_data_file
from pipeline.storage.files import StorageError, read_bytes
from pipeline.storage.parquet import write_table
from pipeline.storage.retry import RetryBudget, in_threads, is_transient, retried
from pipeline.tagging.stages import DecodeWindows
from pipeline.tagging.window_views import WindowViews
from pipeline.tagging.windows import WindowGrid
from pipeline.transcode.config import TranscodeConfig
from tests.support.failing_server import FailingServer, Mode, failing_server
from tests.support.faulty_proxy import Counts, faulty_proxy
from tests.support.s3_server import set_s3_environment

BUDGET, TIMEOUT = 1.0, 0.5
MOST_REQUESTS = 3  # with the shortest pauses of the policy: at 0, 0.25 and 0.75 seconds
# The last: imports, signatures, a busy machine; a second budget would show in the requests.
SECONDS = BUDGET + TIMEOUT + 4.0
MOST_DELTA_REQUESTS = 10  # several files of the log side by side
VIDEOS = 3
ROWS = pa.table({"uri": ["a"]})
URI = "s3://bucket/key"

Connect = Callable[[FailingServer], None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Let this process use a server, with a small budget and short time-outs."""
    monkeypatch.setattr(retry, "BUDGET_SECONDS", BUDGET)
    monkeypatch.setattr(object_storage, "READ_TIMEOUT_SECONDS", TIMEOUT)
    object_storage._arrow_s3.cache_clear()

    def use(server: FailingServer) -> None:
        set_s3_environment(monkeypatch, server.url)
        object_storage.s3_client()  # takes a second on a busy machine, which is not the server's
        object_storage.arrow_s3()

    yield use
    object_storage._arrow_s3.cache_clear()


def _chunk() -> None:
    prepare = PrepareSettings(ManifestConfig(), TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)
    stage = PrepareChunk(ChunkSettings("s3://bucket/set", 1, 4, prepare))
    try:
        stage.prepare(0)
    finally:
        stage.transcoder.close()


def _tag_stage() -> None:
    stage = DecodeWindows(DecodeConfig(), WindowViews(WindowGrid(1.0, 1.0), (8, 64, 64)))
    stage.begin_task()
    listed = [{"uri": f"s3://bucket/{number}.mp4", "content_version": "1"} for number in range(VIDEOS)]
    windows = [window for video in listed for window in stage(video)]
    assert [window.status for window in windows] == ["unreadable"] * VIDEOS
    raise StorageError(URI, "became rows", "look at them")


@pytest.mark.parametrize("mode", ["503", "hang", "refuse"])
@pytest.mark.parametrize(
    ("work", "extra"),  # extra: a single try of each video after the first
    [
        pytest.param(lambda: read_bytes(URI), 0, id="read_bytes"),
        pytest.param(lambda: read_versions("s3://bucket/set"), 0, id="versions"),
        pytest.param(lambda: read_shard("s3://bucket/set/shards/0.parquet"), 0, id="shard"),
        pytest.param(lambda: files.write_bytes(URI, b"new"), 0, id="write_bytes"),
        pytest.param(lambda: files.write_if_absent(URI, b"new"), 0, id="write_if_absent"),
        pytest.param(lambda: files.replace_if_unchanged(URI, b"old", b"new"), 0, id="replace_if_unchanged"),
        pytest.param(lambda: files.write_unless(URI, b"new", lambda _: False), 0, id="write_unless"),
        pytest.param(lambda: files.delete(URI), 0, id="delete"),
        pytest.param(lambda: write_table(URI, pa.table({"a": [1]})), 0, id="write_table"),
        pytest.param(lambda: write_data_file("s3://bucket/table", ROWS), 0, id="file of a Delta table"),
        pytest.param(_chunk, 0, id="prepare chunk"),
        pytest.param(_tag_stage, VIDEOS - 1, id="tag stage"),
    ],
)
def test_a_dead_store_is_noticed_within_the_budget(
    connect: Connect, work: Callable[[], Any], extra: int, mode: Mode, request: pytest.FixtureRequest
) -> None:
    with failing_server(mode) as server:
        connect(server)
        began = time.monotonic()
        with pytest.raises(StorageError):
            work()
        seconds = time.monotonic() - began
    print(f"{request.node.callspec.id}: {server.requests} requests, {seconds:.1f} s")
    assert (mode != "refuse") <= server.requests <= MOST_REQUESTS + extra
    assert seconds < SECONDS + extra * TIMEOUT + 2 * ("shard" in request.node.name)  # Arrow rounds time-outs up


@dataclass
class DyingStore:
    """A store that works until ``counts.share`` becomes 1, with a table in it."""

    table: Table
    counts: Counts


@pytest.fixture(params=["503", "stall"])
def dying(request: pytest.FixtureRequest, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DyingStore]:
    """Delta Lake's client has its own share of the policy; its limits are set when a table is opened."""
    with faulty_proxy(s3_server, 0.0, stall_seconds=60.0, faults=(request.param,)) as (url, counts):
        set_s3_environment(monkeypatch, url)
        bucket = f"bucket-{os.getpid()}-{time.time_ns()}"
        object_storage.s3_client().create_bucket(Bucket=bucket)
        for module in (retry, object_storage):
            monkeypatch.setattr(module, "BUDGET_SECONDS", BUDGET)
        monkeypatch.setattr(object_storage, "READ_TIMEOUT_SECONDS", TIMEOUT)
        table = create_table(f"s3://{bucket}/table", ROWS.schema)
        table.commit(Change((write_data_file(table.uri, ROWS),)), {})
        yield DyingStore(table, counts)


@pytest.mark.parametrize(
    ("work", "budgets"),
    [
        pytest.param(lambda table: open_table(table.uri), 1, id="open"),
        # A second one for the look whether its own request, of which no answer came, has reached the store.
        pytest.param(lambda table: create_table(f"{table.uri}-2", ROWS.schema), 2, id="create"),
        pytest.param(lambda table: table.commit(Change(), {"n": "1"}), 1, id="commit"),
        pytest.param(lambda table: table.refresh(), 1, id="refresh"),
        pytest.param(lambda table: list(table.commits(1)), 1, id="history"),
        pytest.param(lambda table: table.vacuum(0), 1, id="vacuum"),
    ],
)
def test_a_store_that_dies_under_a_delta_table_is_noticed_within_the_budget(
    dying: DyingStore, work: Callable[[Table], Any], budgets: int, request: pytest.FixtureRequest
) -> None:
    dying.counts.share, before, began = 1.0, dying.counts.total(), time.monotonic()
    with pytest.raises(StorageError):
        work(dying.table)
    seconds, requests = time.monotonic() - began, dying.counts.total() - before
    print(f"{request.node.callspec.id}: {requests} requests, {seconds:.1f} s")
    assert 0 < requests <= budgets * MOST_DELTA_REQUESTS
    assert seconds < budgets * SECONDS


@pytest.mark.parametrize("depth", [1, 4])
def test_nested_retries_share_one_budget(connect: Connect, depth: int) -> None:
    def nested(level: int) -> bytes:
        return retried(lambda: nested(level - 1)) if level else object_storage.get(URI)

    with failing_server("503") as server:
        connect(server)
        began = time.monotonic()
        with pytest.raises(botocore.exceptions.ClientError):
            nested(depth)
    assert time.monotonic() - began < SECONDS
    assert server.requests <= MOST_REQUESTS


def test_threads_share_one_budget_and_the_first_error_ends_them(connect: Connect) -> None:
    with failing_server("503") as server:
        connect(server)
        began = time.monotonic()
        with pytest.raises(StorageError):
            in_threads(2, read_bytes, [f"{URI}/{number}" for number in range(1000)])
    assert (
        time.monotonic() - began < 4 * SECONDS
    )  # a busy machine; budgets one after another take a thousand times as long
    assert server.requests < 100  # a few single tries until the error has reached the starter


def test_an_outer_budget_holds(connect: Connect) -> None:
    """A writer that nothing waits for may try longer than others."""
    with failing_server("503") as server, RetryBudget(3 * BUDGET).shared():
        connect(server)
        began = time.monotonic()
        with pytest.raises(StorageError):
            read_bytes(URI)
    assert BUDGET < time.monotonic() - began < 3 * BUDGET + 1


def test_an_answer_refills_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())
    answers: Iterator[Exception | int] = iter([_error("503"), 1, _error("404", 404), _error("503"), _error("503"), 2])

    def request() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with RetryBudget(60).shared() as budget:
        assert retried(request) == 1
        with pytest.raises(botocore.exceptions.ClientError):
            retried(request)
        assert not budget.is_spent(after_seconds=1000)
        assert retried(request) == 2


def test_a_transfer_longer_than_the_budget_gets_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())
    tries = []

    def transfer() -> str:
        tries.append(time.sleep(0.02))
        if len(tries) == 1:
            raise botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2)
        return "whole"

    with RetryBudget(0.01).shared():
        assert retried(transfer) == "whole"


@pytest.mark.parametrize(
    "call",
    [
        lambda: files.read_bytes(URI),
        lambda: files.write_bytes(URI, b"body"),
        lambda: files.write_if_absent(URI, b"body"),
        lambda: files.replace_if_unchanged(URI, b"body", b"new"),
        lambda: files.exists(URI),
        lambda: files.delete(URI),
        lambda: files.list_files("s3://bucket"),
        lambda: list(files.listed_in_parts("s3://bucket")),
        lambda: files.content_version(URI),
        lambda: files.local_copy(URI).__enter__(),
    ],
)
def test_every_verb_survives_two_failures_in_a_row(
    call: Callable[[], Any], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())
    monkeypatch.setattr(retry, "BUDGET_SECONDS", 60.0)
    with failing_server("503", content=b"body") as server:
        connect(server)
        call()
    assert server.requests % 3 == 0


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: _error("NoSuchKey", 404), id="missing"),
        pytest.param(lambda: _error("AccessDenied", 403), id="forbidden"),
        pytest.param(lambda: _error("PreconditionFailed", 412), id="lost race"),
        pytest.param(lambda: _error("InvalidObjectState", 403), id="archived"),
        pytest.param(lambda: botocore.exceptions.ParamValidationError(report="no key"), id="bad name"),
        pytest.param(botocore.exceptions.NoCredentialsError, id="no credentials"),
        pytest.param(lambda: OSError(28, "No space left on device"), id="full disk"),
        pytest.param(lambda: OSError("AWS Error ACCESS_DENIED during HeadObject operation"), id="forbidden to Arrow"),
    ],
)
def test_a_definite_answer_is_never_retried(error: Callable[[], Exception]) -> None:
    requests = []

    def request() -> None:
        requests.append(1)
        raise error()

    with pytest.raises(Exception, match=r"."):
        retried(request)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: _error("SlowDown", 503), id="throttled"),
        pytest.param(lambda: _error("RequestTimeout", 400), id="request time-out"),
        pytest.param(lambda: _error("429", 429), id="too many requests"),
        pytest.param(lambda: botocore.exceptions.ReadTimeoutError(endpoint_url="http://server"), id="time-out"),
        pytest.param(lambda: botocore.exceptions.EndpointConnectionError(endpoint_url="http://server"), id="refused"),
        pytest.param(lambda: OSError("AWS Error SLOW_DOWN during GetObject operation"), id="throttled by Arrow"),
        pytest.param(ConnectionResetError, id="reset"),
    ],
)
def test_what_may_pass_is_transient(error: Callable[[], Exception]) -> None:
    assert is_transient(error())


def test_a_retried_conditional_write_that_meets_its_own_object_has_won(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of the first PUT was lost; the second meets what the first has written."""
    monkeypatch.setattr(retry, "WAIT", tenacity.wait_none())

    class Client:
        answers: Iterator[Exception] = iter([_error("500", 500), _error("PreconditionFailed", 412)])

        def put_object(self, **_: Any) -> None:
            raise next(self.answers)

    monkeypatch.setattr(object_storage, "s3_client", Client)
    monkeypatch.setattr(object_storage, "get", lambda _uri: b"mine")
    assert object_storage.put_if_absent(URI, b"mine")


def test_the_last_error_of_a_local_file_is_immediate(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError):
        read_shard(str(tmp_path / "none.parquet"))
    assert time.monotonic() - began < retry.BUDGET_SECONDS / 10


def _error(code: str, status: int = 503) -> botocore.exceptions.ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "Request")
