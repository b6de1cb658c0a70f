"""prepare against kills and on object storage: nothing is done twice, nothing is lost."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from jobs.prepare import command as prepare
from jobs.prepare.command import PrepareConfig
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import Rendering, draw_frames, draw_motion, encode, render_motion_videos
from pipeline.decode.config import DecodeConfig
from pipeline.shards.writer import StoreConfig
from pipeline.storage.files import join, list_files, read_bytes, write_bytes
from pipeline.storage.s3 import s3_client

REPOSITORY = Path(__file__).resolve().parents[3]
UNTRACKED = TrackingConfig(uri="none")
CHUNKS = StoreConfig(videos_per_chunk=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    render_motion_videos(folder, 48, 0, size=128, num_frames=30)
    (folder / "grows" / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture
def object_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on a light S3 server in this process."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3_client().create_bucket(Bucket="videos")
    yield "s3://videos"
    server.stop()


@pytest.mark.faults
def test_a_killed_run_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    """Killed three times, the set is the one of a run that was left in peace."""
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "jobs.prepare", f"source={source}", f"output={output}"]
    command += ["workers=0", "store.videos_per_chunk=4", "tracking.uri=none"]
    finished: dict[str, int] = {}
    for kill in range(3):
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _wait_for_records(output, 2 * (kill + 1), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        records = _modified(output / "_prepare" / "v0001" / "videos")
        assert {name: records[name] for name in finished} == finished
        finished = records
        assert not (output / "dataset.json").exists()
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert {name: _modified(output / "_prepare" / "v0001" / "videos")[name] for name in finished} == finished
    prepare.run(
        PrepareConfig(source=str(source), output=str(tmp_path / "peace"), workers=0, store=CHUNKS, tracking=UNTRACKED)
    )
    digests = [json.loads((place / "dataset.json").read_text())["digest"] for place in (output, tmp_path / "peace")]
    assert digests[0] == digests[1]


def _wait_for_records(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(_modified(output / "_prepare" / "v0001" / "videos")) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _modified(folder: Path) -> dict[str, int]:
    if not folder.exists():
        return {}
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix == ".parquet"}


@pytest.mark.faults
def test_mutated_files_are_each_accounted_for_once(tmp_path: Path) -> None:
    """300 files, every container, damaged in the header, the index, the frames, or cut short: no job fails or hangs."""
    originals = _every_container(tmp_path / "originals")
    folder = tmp_path / "mutated"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(300):
        original = originals[number % len(originals)]
        kind = MUTATIONS[number // len(originals) % len(MUTATIONS)]
        (folder / f"{number:03d}{original.suffix}").write_bytes(kind(original.read_bytes(), draw))
    started = time.monotonic()
    report = prepare.run(
        PrepareConfig(
            source=str(folder),
            output=str(tmp_path / "set"),
            workers=0,
            decode=DecodeConfig(deadline_seconds=10),
            tracking=UNTRACKED,
        )
    )
    assert time.monotonic() - started < 600
    stored = [uri for path in (tmp_path / "set" / "shards").iterdir() for uri in pq.read_table(path)["uri"].to_pylist()]
    refused = [
        uri for path in (tmp_path / "set" / "rejected").iterdir() for uri in pq.read_table(path)["uri"].to_pylist()
    ]
    assert sorted(stored + refused) == sorted(str(path) for path in folder.iterdir())
    assert report["clips"] == len(stored)
    assert len(stored) > 10
    assert len(refused) > 100


def _every_container(folder: Path) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(1)
    frames = draw_frames([draw_motion("grows", 24, rng)], Rendering(0.5, 96, 24), rng)
    paths = [folder / f"original{suffix}" for suffix in (".mp4", ".webm", ".mkv", ".mov", ".avi", ".flv", ".ts")]
    for path in paths:
        encode(path, frames, 24)
    return paths


def _header(data: bytes, draw: np.random.Generator) -> bytes:
    return _changed(data, draw.integers(0, min(64, len(data)), 8), draw)


def _index(data: bytes, draw: np.random.Generator) -> bytes:
    """The `moov` box where there is one, which crashed and hung decoders; else the last tenth."""
    start = data.find(b"moov")
    start = start if start >= 0 else len(data) * 9 // 10
    return _changed(data, draw.integers(start, min(start + 600, len(data)), 10), draw)


def _content(data: bytes, draw: np.random.Generator) -> bytes:
    return _changed(data, draw.integers(len(data) // 4, len(data) * 3 // 4, 50), draw)


def _cut_short(data: bytes, draw: np.random.Generator) -> bytes:
    return data[: int(draw.integers(0, len(data)))]


def _changed(data: bytes, places: npt.NDArray[np.int64], draw: np.random.Generator) -> bytes:
    content = np.frombuffer(data, np.uint8).copy()
    content[places] ^= draw.integers(1, 256, len(places), np.uint8)
    return content.tobytes()


MUTATIONS = (_header, _index, _content, _cut_short)


@pytest.mark.ray
def test_source_and_output_on_object_storage(source: Path, object_storage: str, tmp_path: Path) -> None:
    """The same clips as from local files; the second call finds the set complete; growing works."""
    for path in source.rglob("*.*"):
        write_bytes(join(object_storage, "in", path.relative_to(source).as_posix()), path.read_bytes())
    place = join(object_storage, "out")
    config = PrepareConfig(source=join(object_storage, "in"), output=place, workers=0, store=CHUNKS, tracking=UNTRACKED)
    assert prepare.run(config)["status"] == "prepared"
    assert prepare.run(config)["status"] == "already up to date"
    prepare.run(
        PrepareConfig(source=str(source), output=str(tmp_path / "local"), workers=0, store=CHUNKS, tracking=UNTRACKED)
    )
    local = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "local" / "shards").iterdir()))
    shards = list_files(join(place, "shards"))["uri"].to_pylist()
    remote = pa.concat_tables(pq.read_table(pa.BufferReader(read_bytes(shard))) for shard in shards)
    assert _by_name(remote) == _by_name(local)
    write_bytes(join(object_storage, "in", "grows", "new.mp4"), next(source.rglob("*.mp4")).read_bytes())
    assert prepare.run(config)["version"] == 2
    assert json.loads(read_bytes(join(place, "dataset.json")))["counts"]["clips"] == 49


class _FlakyProxy(ThreadingHTTPServer):
    """Passes requests on to a server; every fifth goes wrong: 503, a reset, or half of the answer."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _FlakyHandler)
        self.upstream = server.removeprefix("http://")
        self.draw = random.Random(0)
        self.faults = 0


class _FlakyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _FlakyProxy

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.draw.choice(("503", "reset", "short")) if self.server.draw.random() < 0.2 else ""
        self.server.faults += bool(fault)
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "503":
            self._answer(503, {}, b"", 0)
            return
        self._pass_on(body, short=fault == "short" and self.command == "GET")

    def _pass_on(self, body: bytes, short: bool) -> None:
        connection = http.client.HTTPConnection(self.server.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        length = int(answer.headers.get("Content-Length", len(content)))
        self._answer(answer.status, dict(answer.headers), content[: len(content) // 2] if short else content, length)
        self.close_connection = self.close_connection or short
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


@pytest.mark.faults
def test_storage_that_fails_every_fifth_time(
    source: Path, object_storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in source.rglob("*.*"):
        write_bytes(join(object_storage, "in", path.relative_to(source).as_posix()), path.read_bytes())
    place = join(object_storage, "out")
    proxy = _FlakyProxy(os.environ["AWS_ENDPOINT_URL"])
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    report = prepare.run(
        PrepareConfig(source=join(object_storage, "in"), output=place, workers=0, store=CHUNKS, tracking=UNTRACKED)
    )
    proxy.shutdown()
    assert proxy.faults > 20
    assert (report["clips"], report["rejected"]) == (48, {"not_a_video": 1})
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.upstream}")
    shards = list_files(join(place, "shards"))["uri"].to_pylist()
    uris = [uri for shard in shards for uri in pq.read_table(pa.BufferReader(read_bytes(shard)))["uri"].to_pylist()]
    assert len(set(uris)) == len(uris) == 48


def _by_name(clips: pa.Table) -> dict[str, tuple[str, bytes]]:
    rows = clips.to_pylist()
    return {row["uri"].rpartition("/")[2]: (row["label"], row["video"]) for row in rows}
