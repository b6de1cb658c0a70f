"""Tagging on a real S3 server (Ceph's RADOS gateway): a video of two hours is read once, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.synthetic.motion_videos import MOTION_CLASSES
from pipeline.schema import OK
from pipeline.storage.files import join, write_bytes
from pipeline.tagging.reader import read_videos
from tests.support.ceph_gateway import Gateway
from tests.support.faulty_proxy import Counts, faulty_proxy
from tests.support.long_video import write_long
from tests.support.runs import command, family_of

pytestmark = [pytest.mark.s3, pytest.mark.timeout(900)]

HOURS = 2
MOST_READ = 1.1  # of the size of an object
MOST_BYTES = 1.5 * 2**30  # of a worker and its decoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(path, create_model("hiera_test_8x64"), {"classes": json.dumps(MOTION_CLASSES)})
    return path


@pytest.fixture
def counting(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """Between this process and the server, without faults."""
    with faulty_proxy(gateway.endpoint, share=0.0, stall_seconds=0.0) as (url, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield counts


def test_a_video_of_hours_is_read_once_in_bounded_memory(
    bucket: str, counting: Counts, weights: Path, tmp_path: Path
) -> None:
    """The whole command with its Ray: more windows than are ever in memory together."""
    long = write_long(tmp_path / "long.mp4", 60 * HOURS, size=(64, 64), fps=5, noise=160)
    write_bytes(join(bucket, "in", "long.mp4"), long.read_bytes())
    keys = {"source": join(bucket, "in"), "init": weights, "output": join(bucket, "out"), "batch_size": 16}
    arguments = [f"{key}={value}" for key, value in keys.items()]
    with (tmp_path / "log.txt").open("w") as log:
        run = subprocess.Popen(
            command("jobs.tag", *arguments, "tracking.uri=none", "gallery_videos=0"), stdout=log, stderr=log
        )
        peaks = _peaks_of_workers(run)
    assert run.returncode == 0, (tmp_path / "log.txt").read_text()
    (video,) = read_videos(join(bucket, "out"), ["status", "windows", "duration_seconds"]).to_pylist()
    assert video["status"] == OK
    assert video["duration_seconds"] == pytest.approx(HOURS * 3600, rel=0.01)
    assert video["windows"] == pytest.approx(HOURS * 1800, abs=2)
    size = long.stat().st_size
    print(f"{size / 2**20:.0f} MiB, read {counting.video_bytes / size:.3f} times; MiB a worker: {peaks}")
    assert size > 20 * 2**20
    assert 1.0 <= counting.video_bytes / size <= MOST_READ
    assert max(peaks.values()) < MOST_BYTES / 2**20


def _peaks_of_workers(run: subprocess.Popen[bytes]) -> dict[str, int]:
    """Class of each Ray actor that decodes or scores → the largest resident memory of one with its children, in MiB."""
    peaks: dict[str, int] = {}
    while run.poll() is None:
        for process in family_of(run)[1:]:
            try:
                title = " ".join(process.cmdline()[:1])
                own = [process, *process.children()] if "TagOnRay" in title or "ScoreViews" in title else []
                total = sum(_peak_bytes(member.pid) for member in own)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
            if own:
                peaks[title] = max(peaks.get(title, 0), total // 2**20)
        time.sleep(0.25)
    assert peaks
    return peaks


def _peak_bytes(process: int) -> int:
    """The most that was ever resident."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
