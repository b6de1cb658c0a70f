"""The data plane on a real S3 server (Ceph's RADOS gateway): conditional writes, secrets, bad weather, a dead store."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.shards.reader import PreparedSet, RowGroupReader, open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.storage import retry
from pipeline.storage import s3 as object_storage
from pipeline.storage.files import (
    StorageError,
    join,
    list_files,
    read_bytes,
    replace_if_unchanged,
    write_bytes,
    write_if_absent,
)
from pipeline.transcode.config import TranscodeConfig
from tests.support.ceph_gateway import Gateway
from tests.support.faulty_proxy import FAULTS, faulty_proxy
from tests.support.prepared import prepare

pytestmark = pytest.mark.s3

WRITERS = 16
VIDEOS = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    render_motion_videos(folder, VIDEOS, 0, size=96, num_frames=24)
    (folder / "grows" / "broken.mp4").write_text("no video")
    return folder


def test_one_of_racing_writers_wins(bucket: str) -> None:
    place = join(bucket, "dataset.json")
    with ThreadPoolExecutor(WRITERS) as pool:
        created = list(pool.map(lambda number: write_if_absent(place, b"%d" % number), range(WRITERS)))
        first = read_bytes(place)
        replaced = list(pool.map(lambda number: replace_if_unchanged(place, first, b"new %d" % number), range(WRITERS)))
    assert first == b"%d" % created.index(True)
    assert read_bytes(place) == b"new %d" % replaced.index(True)
    assert (sum(created), sum(replaced)) == (1, 1)


def test_a_wrong_secret_is_one_error_without_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    monkeypatch.setenv("AWS_PROFILE", "")  # another identity: another client
    object_storage._cached_client.cache_clear()
    with pytest.raises(StorageError, match="credentials") as caught:
        read_bytes(join(bucket, "anything"))
    object_storage._cached_client.cache_clear()
    assert "a-wrong-secret" not in str(caught.value)


def test_prepare_and_reading_on_a_bad_day(
    bucket: str, gateway: Gateway, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of all requests answer 503, are reset, stall or break off: the set is that of a calm day."""
    for path in source.rglob("*.*"):
        write_bytes(join(bucket, "in", path.relative_to(source).as_posix()), path.read_bytes())
    monkeypatch.setattr(object_storage, "READ_TIMEOUT_SECONDS", 2)
    with faulty_proxy(gateway.endpoint, share=0.2, stall_seconds=3) as (url, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        version = _prepared(join(bucket, "in"), join(bucket, "out"))
        read_in_storm = _clips(open_prepared(join(bucket, "out")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
    _prepared(str(source), str(tmp_path / "calm"))
    assert version["rejected"] == {"not_a_video": 1}
    assert _by_name(read_in_storm) == _by_name(_clips(open_prepared(str(tmp_path / "calm"))))
    shards = [read_bytes(uri) for uri in list_files(join(bucket, "out", "shards"))["uri"].to_pylist()]
    stored = [uri for shard in shards for uri in pq.read_table(pa.BufferReader(shard))["uri"].to_pylist()]
    assert len(stored) == len(set(stored)) == VIDEOS
    assert all(counts[fault] for fault in FAULTS)


def _prepared(place: str, output: str) -> dict[str, int]:
    settings = PrepareSettings(
        ManifestConfig(), TranscodeConfig(), DecodeConfig(deadline_seconds=30), StoreConfig(videos_per_chunk=4), seed=0
    )
    prepare(place, output, settings, workers=0)
    counts: dict[str, int] = json.loads(read_bytes(join(output, "dataset.json")))["counts"]
    return counts


def _clips(prepared: PreparedSet) -> pa.Table:
    """Every clip, by the reader of training."""
    selection = prepared.selection("all")
    reader = RowGroupReader(selection)
    return pa.concat_tables([reader.clip(number) for number in range(selection.first_clip[-1])])


def _by_name(clips: pa.Table) -> dict[str, tuple[str, bytes]]:
    """File name → label and stored bytes; splits are drawn by URI, so they differ from place to place."""
    return {row["uri"].rpartition("/")[2]: (row["label"], row["video"]) for row in clips.to_pylist()}


def test_a_store_that_hangs_is_an_error_in_time(bucket: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway is up, the store behind it stopped: a PUT hangs to the client's time-out, not for ever."""
    monkeypatch.setattr(object_storage, "READ_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(retry, "BUDGET_SECONDS", 3)
    object_storage._cached_client.cache_clear()
    store = gateway.processes["osd"].pid
    os.kill(store, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL"):
            write_bytes(join(bucket, "late"), b"content")
        assert time.monotonic() - began < 3 + 2
    finally:
        os.kill(store, signal.SIGCONT)
        object_storage._cached_client.cache_clear()
    write_bytes(join(bucket, "late"), b"content")
    assert read_bytes(join(bucket, "late")) == b"content"
