"""Faults of one host, made on purpose: each check names its fault and the remedy, and is content without it."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from jobs.doctor.findings import Finding
from jobs.doctor.host import (
    conditional_writes_hold,
    decoder_works,
    disk_has_capacity,
    files_may_be_opened,
    gpus_answer,
    shared_memory_fits,
    storage_works,
)
from pipeline.decode.config import DecodeConfig
from pipeline.storage.files import write_bytes

DENIED = b"<Error><Code>SignatureDoesNotMatch</Code><Message>The secret is wrong</Message></Error>"


def test_a_sound_decoder() -> None:
    sound = decoder_works("a")
    assert sound.ok, sound
    assert sound.detail.startswith("8 frames in")


def test_a_decoder_that_gives_up_is_named() -> None:
    broken = decoder_works("a", DecodeConfig(max_seconds=0.001))
    assert not broken.ok
    assert broken.remedy.startswith("install the packages of constraints.txt again")


def test_a_full_disk(tmp_path: Path) -> None:
    assert disk_has_capacity("a", str(tmp_path), fullest=1.0).ok
    full = disk_has_capacity("a", str(tmp_path), fullest=0.0)
    assert not full.ok
    assert str(tmp_path) in full.detail
    assert "--temp-dir" in full.remedy


def test_a_small_shared_memory(tmp_path: Path) -> None:
    total = shutil.disk_usage(tmp_path).total
    assert shared_memory_fits("a", total / 2, str(tmp_path)).ok
    small = shared_memory_fits("a", 2 * total, str(tmp_path))
    assert not small.ok
    assert "--shm-size" in small.remedy


def test_a_low_limit_of_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        low = files_may_be_opened("a")
        assert (low.ok, low.detail) == (False, "at most 1024")
        assert "ulimit -n 65536" in low.remedy
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
        assert files_may_be_opened("a", fewest=min(hard, 65536)).ok
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("script", "ok", "detail"),
    [
        ("echo 'NVIDIA L40, 550.54'; echo 'NVIDIA L40, 550.54'", True, "2 × NVIDIA L40, 550.54"),
        ("echo 'driver/library version mismatch' >&2; exit 9", False, "driver/library version mismatch"),
    ],
)
def test_gpus(script: str, ok: bool, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    finding = gpus_answer("a")
    assert (finding.ok, finding.detail) == (ok, detail)
    assert bool(finding.remedy) != ok


def test_a_host_without_gpus_is_sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_answer("a") == Finding("a", "GPUs", True, "none")


def test_storage_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    whole, conditional = storage_works("a", str(tmp_path))
    assert whole.ok
    assert "MB/s" in whole.detail
    assert conditional.ok
    assert conditional.detail == "first write taken, second refused"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def refusing_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server that finds every signature wrong."""

    class Refuse(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(403)
            self.send_header("Content-Length", str(len(DENIED)))
            self.end_headers()
            self.wfile.write(DENIED)

        def do_DELETE(self) -> None:
            self.do_PUT()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "key",
                        "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("refusing_server")
def test_a_wrong_secret() -> None:
    (finding,) = storage_works("a", "s3://bucket/probe")
    assert not finding.ok
    assert finding.detail
    assert finding.remedy


def test_a_server_that_ignores_conditions(tmp_path: Path) -> None:
    def always(uri: str, data: bytes) -> bool:
        write_bytes(uri, data)
        return True

    finding = conditional_writes_hold("a", str(tmp_path / "marker"), always)
    assert (finding.ok, finding.detail) == (False, "first write taken, second taken")
    assert "If-None-Match" in finding.remedy
