"""Objects as local files: limits before the cost, nothing left behind, and the machine's faults are its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.chunk import PrepareSettings
from pipeline.prepare.plan import PlannedSet, plan_set
from pipeline.prepare.run import finish_set
from pipeline.shards.writer import StoreConfig
from pipeline.storage import s3 as object_storage
from pipeline.storage.fetch import fetched
from pipeline.storage.files import StorageError, join, local_copy, write_bytes
from pipeline.transcode.config import TranscodeConfig
from tests.support.numbered import write_numbered
from tests.support.s3_server import set_s3_environment

MIB = 2**20
ROOT = Path(__file__).parents[3]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, s3_server: str) -> str:
    set_s3_environment(monkeypatch, s3_server)
    name = f"fetched-{time.time_ns()}"
    object_storage.s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def refusal(uri: str, max_bytes: int = 100 * MIB) -> StorageError:
    with pytest.raises(StorageError) as error, fetched(uri, max_bytes):
        pass
    return error.value


def prepared(source: Path | str, output: Path, **limits: Any) -> dict[str, Any]:
    """The counts of a set made in this process."""
    settings = PrepareSettings(
        ManifestConfig(val_share=0), TranscodeConfig(), DecodeConfig(**limits), StoreConfig(videos_per_chunk=8), seed=0
    )
    planned = plan_set(str(source), str(output), settings)
    assert isinstance(planned, PlannedSet)
    counts: dict[str, Any] = finish_set(planned, 0, lambda done, total: None).version["counts"]
    return counts


def odd_files(folder: Path) -> dict[str, str]:
    """What is called a video and would hang its reader or has no end; name → reason."""
    os.mkfifo(folder / "fifo.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "dangling.mp4").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.mp4"))
    return {"fifo.mp4": "not_a_file", "zero.mp4": "not_a_file", "socket.mp4": "not_a_file", "dangling.mp4": "missing"}


def test_a_local_file_is_its_own_copy(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"12345")
    with fetched(str(tmp_path / "a.mp4"), 5) as path:
        assert path == tmp_path / "a.mp4"
    assert refusal(str(tmp_path / "a.mp4"), 4).reason == "max_bytes"


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    expected = odd_files(tmp_path)
    began = time.monotonic()
    assert {name: refusal(str(tmp_path / name)).reason for name in expected} == expected
    assert refusal(str(tmp_path)).reason == "not_a_file"
    with pytest.raises(StorageError), local_copy(str(tmp_path / "fifo.mp4")):
        pass
    assert time.monotonic() - began < 2


def test_files_that_would_hang_cost_a_row_each(tmp_path: Path) -> None:
    """prepare, whole, and once more: nothing waits, and the good video is stored."""
    source = tmp_path / "source"
    source.mkdir()
    write_numbered(source / "good.mp4", 8)
    expected = odd_files(source)
    (tmp_path / "list.csv").write_text("".join(f"{source / name}\n" for name in ("good.mp4", *expected)))
    counts = prepared(tmp_path / "list.csv", tmp_path / "set")
    assert counts["clips"] == 1
    assert counts["rejected"] == {"not_a_file": 3, "missing": 1}
    settings = PrepareSettings(ManifestConfig(val_share=0), TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)
    assert not isinstance(plan_set(str(tmp_path / "list.csv"), str(tmp_path / "set"), settings), PlannedSet)


@pytest.mark.ray
def test_a_download_has_no_name_and_the_whole_content(bucket: str, temporary: Path) -> None:
    content = os.urandom(3 * MIB)
    write_bytes(join(bucket, "a.mp4"), content)
    with fetched(join(bucket, "a.mp4"), 3 * MIB) as path:
        assert path.read_bytes() == content
        assert path.stat().st_size == len(content)
        assert not list(temporary.iterdir())
    assert refusal(join(bucket, "absent.mp4")).reason == "missing"


@pytest.mark.ray
def test_an_object_over_the_limit_is_not_downloaded(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size that the server states; by the bytes that come where it lies."""
    write_bytes(join(bucket, "large.mp4"), bytes(2 * MIB))
    with monkeypatch.context() as patch:
        patch.setattr(object_storage, "_write", lambda *_: pytest.fail("a byte was written"))
        error = refusal(join(bucket, "large.mp4"), MIB)
    assert (error.reason, error.happened) == ("max_bytes", f"{2 * MIB} is over max_bytes={MIB}")
    asked = object_storage.s3_client().get_object

    def lying(**names: str) -> dict[str, Any]:
        return {**asked(**names), "ContentLength": 1}

    written: list[int] = []
    monkeypatch.setattr(object_storage.s3_client(), "get_object", lying)
    monkeypatch.setattr(object_storage, "_write", lambda file, part, size: written.append(file.write(part)))
    assert refusal(join(bucket, "large.mp4"), MIB + 1).reason == "max_bytes"
    assert sum(written) <= MIB + 1


@pytest.mark.ray
def test_a_full_disk_is_this_machines_fault(bucket: str, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noticed before the download where the size is known, and in the middle of it; the object is not blamed."""
    write_bytes(join(bucket, "a.mp4"), bytes(MIB))
    usage = object_storage.shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(object_storage.shutil, "disk_usage", lambda folder: usage._replace(free=MIB - 1))
        before = refusal(join(bucket, "a.mp4"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    for error in (before, refusal(join(bucket, "a.mp4"))):
        assert error.reason == "disk_full"
        assert error.uri == str(temporary)
        assert "no space left" in error.happened
        assert "TMPDIR" in error.remedy


@pytest.mark.ray
def test_one_large_object_does_not_end_prepare(
    bucket: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MiB where 12 MiB are free: a row by max_bytes; without that, a stop that names the folder, and no row."""
    video = write_numbered(tmp_path / "good.mp4", 8)
    write_bytes(join(bucket, "good.mp4"), video.read_bytes())
    write_bytes(join(bucket, "large.mp4"), bytes(40 * MIB))
    usage = object_storage.shutil.disk_usage("/")
    monkeypatch.setattr(object_storage.shutil, "disk_usage", lambda folder: usage._replace(free=12 * MIB))
    counts = prepared(bucket, tmp_path / "limited", max_bytes=12 * MIB)
    assert (counts["clips"], counts["rejected"]) == (1, {"max_bytes": 1})
    with pytest.raises(StorageError, match=f"no space left for a download of {40 * MIB} bytes"):
        prepared(bucket, tmp_path / "unlimited")
    assert not (tmp_path / "unlimited" / "rejected").exists()


@pytest.mark.ray
def test_a_killed_worker_leaves_nothing(bucket: str, temporary: Path) -> None:
    write_bytes(join(bucket, "a.mp4"), bytes(4 * MIB))
    source = f"""
from pipeline.storage.fetch import fetched
with fetched({join(bucket, "a.mp4")!r}, 2**30) as path:
    print(path.stat().st_size, flush=True)
    input()
"""
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == f"{4 * MIB}\n"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    assert worker.stdin is not None
    worker.stdin.close()
    assert not list(temporary.iterdir())
