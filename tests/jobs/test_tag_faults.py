"""Tagging against kills, a video that kills its workers, and object storage on a bad day: every unit exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.tag import TagConfig, run
from jobs.tagging import pipeline as tagging_pipeline
from jobs.tagging.pipeline import TagOnRay
from pipeline.storage.files import join, write_bytes
from pipeline.storage.s3 import s3_client
from pipeline.tagging.reader import read_tags, read_videos
from pipeline.tagging.stages import DecodedWindow, DecodeWindows, Video
from tests.support.faulty_proxy import FAULTS, faulty_proxy
from tests.support.runs import command, family_of, kill_family
from tests.support.s3_server import light_s3_server, set_s3_environment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

VIDEOS = 48
WINDOWS = {"window_seconds": 0.4, "hop_seconds": 0.08}
TASKS = {"batch_size": 4, "videos_per_task": 2, "commit_seconds": 0.5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(path, create_model("hiera_test_8x64"), {"classes": json.dumps(MOTION_CLASSES)})
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    render_motion_videos(folder, VIDEOS, seed=3, size=64, num_frames=50)
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def peace(weights: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """The snapshot of a run that was left in peace."""
    output = tmp_path_factory.mktemp("peace") / "tags"
    keys = _keys(source, weights, output)
    subprocess.run(command("jobs.tag", *keys), check=True, capture_output=True, timeout=300)
    return _snapshot(output)


def _keys(source: Path | str, weights: Path, output: Path | str) -> list[str]:
    settings = {"source": source, "init": weights, "output": output, **WINDOWS, **TASKS}
    return [*(f"{key}={value}" for key, value in settings.items()), "tracking.uri=none", "gallery_videos=0"]


def _snapshot(output: Path | str) -> dict[tuple[str, int], Any]:
    """(name, window) → labels and scores, each once."""
    rows = read_tags(str(output)).to_pylist()
    snapshot = {(row["uri"].rsplit("/", 1)[-1], row["window_index"]): row for row in rows}
    assert len(snapshot) == len(rows)
    return snapshot


def _assert_equal(snapshot: dict[tuple[str, int], Any], peace: dict[tuple[str, int], Any]) -> None:
    assert snapshot.keys() == peace.keys()
    for key, row in snapshot.items():
        assert row["labels"] == peace[key]["labels"]
        np.testing.assert_allclose(row["scores"], peace[key]["scores"], atol=1e-5)


def test_five_kills_in_a_row_leave_every_unit_once(
    weights: Path, source: Path, peace: dict[tuple[str, int], Any], tmp_path: Path
) -> None:
    """At random moments: a worker first, then the driver with all its Ray, or the driver alone."""
    draw, output = random.Random(0), tmp_path / "tags"
    keys = _keys(source, weights, output)
    kept: dict[tuple[str, int], Any] = {}
    for kill in range(5):
        job = subprocess.Popen(command("jobs.tag", *keys), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for_commits(output, _commits(output) + 2, job)
        if kill % 2:
            _kill_a_worker(job, draw)
        time.sleep(draw.uniform(0, 0.5))
        assert job.poll() is None, "ended before it could be killed"
        (job.kill if kill % 3 == 1 else lambda job=job: kill_family(job))()
        job.wait()
        now = _snapshot(output)
        assert {key: now[key] for key in kept} == kept
        kept = now
    finished = subprocess.run(command("jobs.tag", *keys), check=True, capture_output=True, text=True, timeout=300)
    _assert_equal(_snapshot(output), peace)
    assert len(read_videos(str(output))) == VIDEOS + 1
    report = json.loads((output / "report.json").read_text())
    assert report["videos_done"] == VIDEOS + 1 - len({name for name, _ in kept}), finished.stderr
    # What each killed job was reading: a video for each of its decoders.
    assert report["attempts_lost"] <= 5 * 4 + 2


def _wait_for_commits(output: Path, count: int, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while _commits(output) < count:
        assert job.poll() is None, "ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _commits(output: Path) -> int:
    """The first one creates the table."""
    return len(list((output / "tags" / "_delta_log").glob("*.json")))


def _kill_a_worker(job: subprocess.Popen[bytes], draw: random.Random) -> None:
    """One of the actors that decode or score."""
    actors = [member for member in family_of(job) if "ray::" in " ".join(member.cmdline()[:1])]
    draw.choice(actors).send_signal(signal.SIGKILL)


def test_sigterm_commits_what_is_done_and_the_next_run_the_rest(
    weights: Path, source: Path, peace: dict[tuple[str, int], Any], tmp_path: Path
) -> None:
    output = tmp_path / "tags"
    keys = _keys(source, weights, output)
    job = subprocess.Popen(command("jobs.tag", *keys), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_commits(output, 1, job)
    second = subprocess.run(command("jobs.tag", *keys), capture_output=True, text=True, timeout=100, check=False)
    assert second.returncode == 2
    assert "another job is working on it" in second.stderr
    _wait_for_commits(output, 3, job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 3
    assert 0 < len(read_videos(str(output))) < VIDEOS + 1
    subprocess.run(command("jobs.tag", *keys), check=True, capture_output=True, timeout=300)
    _assert_equal(_snapshot(output), peace)


class _DiesOfOneVideo(DecodeWindows):
    """The video named `killer` kills its actor."""

    def __call__(self, listed: Video) -> Iterator[DecodedWindow]:
        if "killer" in listed["uri"]:
            with (Path(listed["uri"]).parent / "kills.txt").open("a") as kills:
                kills.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().__call__(listed)


class _TagOnRay(TagOnRay):
    """An actor that one video kills."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.decode = _DiesOfOneVideo(self.plan.config.decode, self.plan.views)


@pytest.mark.usefixtures("ray_cluster")
def test_one_crashing_video_is_one_failed_row_after_two_attempts(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    render_motion_videos(source, 40, seed=5, size=64, num_frames=20)
    next(source.rglob("*.mp4")).rename(source / "killer.mp4")
    monkeypatch.setattr(tagging_pipeline, "TagOnRay", _TagOnRay)
    config = TagConfig(
        source=str(source), init=str(weights), output=str(tmp_path / "tags"), batch_size=4, videos_per_task=8,
        gallery_videos=0, tracking=TrackingConfig(uri="none"),
    )  # fmt: skip
    run(config)
    rows = read_tags(config.output).to_pylist()
    assert Counter(row["status"] for row in rows) == {"ok": 39, "crashed": 1}
    (failed,) = (row for row in read_videos(config.output).to_pylist() if row["status"] != "ok")
    assert failed["uri"].endswith("killer.mp4")
    assert (failed["error_class"], failed["attempts"]) == ("crashed", 2)
    assert (source / "kills.txt").read_text() == "xx"


def test_object_storage_on_a_bad_day(
    weights: Path,
    source: Path,
    peace: dict[tuple[str, int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fifth of all requests fail, stall or break off, for source and output: the same snapshot as in peace."""
    with light_s3_server() as server:
        set_s3_environment(monkeypatch, server)
        s3_client().create_bucket(Bucket="tags")
        for path in source.rglob("*.*"):
            write_bytes(join("s3://tags/in", path.relative_to(source).as_posix()), path.read_bytes())
        with faulty_proxy(server, share=0.2, stall_seconds=1) as (url, counts):
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            keys = [*_keys("s3://tags/in", weights, "s3://tags/out"), "batch_size=8", "videos_per_task=8"]
            subprocess.run(command("jobs.tag", *keys), check=True, capture_output=True, text=True, timeout=500)
        assert all(counts[fault] > 10 for fault in FAULTS)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        _assert_equal(_snapshot("s3://tags/out"), peace)
        assert read_videos("s3://tags/out")["status"].to_pylist().count("ok") == VIDEOS


def test_no_process_is_left_behind(weights: Path, source: Path, tmp_path: Path) -> None:
    """A driver that is killed takes its Ray and its decoders along (Ray's agents see it after a minute or two)."""
    job = subprocess.Popen(
        command("jobs.tag", *_keys(source, weights, tmp_path / "tags")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for_commits(tmp_path / "tags", 2, job)
    family = family_of(job)
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(family[1:], timeout=180)
    assert not alive
