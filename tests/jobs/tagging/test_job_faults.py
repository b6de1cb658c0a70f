"""SIGKILL and SIGTERM to a tagging job at random moments. Its stages run in its own process, without Ray.

`tests.jobs.test_tag_faults` does the same to whole jobs with their Ray; here a start costs little, so kills can fall
anywhere: while a video is read, between files and their commit, between the two commits of a transaction.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs import tag
from jobs.core.cli import replace
from jobs.core.errors import UserError, WorkStoppedError
from jobs.register import RegisterConfig
from jobs.register import run as register
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.tagging import job, job_log
from jobs.tagging.config import TagConfig
from pipeline.manifest.errors import VanishedSourceError
from pipeline.storage import s3 as object_storage
from pipeline.storage.files import join, write_bytes
from pipeline.tagging.reader import read_tags, read_videos
from tests.support.faulty_proxy import FAULTS, faulty_proxy
from tests.support.numbered import write_numbered
from tests.support.runs import command
from tests.support.s3_server import light_s3_server, set_s3_environment
from tests.support.tag_here import runner_here

pytestmark = pytest.mark.faults

VIDEOS = 24
KEYS = ("window_seconds", "hop_seconds", "batch_size", "videos_per_task", "commit_seconds", "gallery_videos")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TagConfig:
    monkeypatch.setattr(job, "task_runner", runner_here)
    monkeypatch.setattr(job_log, "HEARTBEAT_SECONDS", 0.2)
    torch.manual_seed(0)
    save_model(tmp_path / "w.safetensors", create_model("hiera_test_8x64"), {"classes": json.dumps(MOTION_CLASSES)})
    render_motion_videos(tmp_path / "source", VIDEOS, seed=3, size=64, num_frames=50)
    (tmp_path / "source" / "broken.mp4").write_text("no video")
    return TagConfig(
        source=str(tmp_path / "source"), init=str(tmp_path / "w.safetensors"), output=str(tmp_path / "killed"),
        window_seconds=0.4, hop_seconds=0.4, batch_size=2, videos_per_task=2, commit_seconds=0.5, gallery_videos=0,
        tracking=TrackingConfig(uri="none"),
    )  # fmt: skip


def _started(config: TagConfig) -> subprocess.Popen[str]:
    keys = [f"{key}={getattr(config, key)}" for key in ("source", "init", "output", *KEYS)]
    return subprocess.Popen(
        command("tests.support.tag_here", *keys, "tracking.uri=none"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "PACE_SECONDS": "0.4"},
    )  # fmt: skip


def _wait_for_commits(output: str, count: int, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while _commits(output) < count:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)


def _commits(output: str) -> int:
    return len(list(Path(output, "tags", "_delta_log").glob("*.json")))


def test_five_kills_leave_every_unit_once(config: TagConfig, tmp_path: Path) -> None:
    """What was committed stays as it is; what was not is done by the next run, whatever files there are of it."""
    draw = random.Random(0)
    kept: list[Any] = []
    for _ in range(5):
        running = _started(config)
        _wait_for_commits(config.output, _commits(config.output) + 2, running)
        time.sleep(draw.uniform(0, 1.0))
        assert running.poll() is None, "ended before it could be killed"
        running.kill()
        running.communicate()
        now = _rows(config.output)
        assert set(kept) < set(now)
        kept = now
    report = tag.run(config)
    assert report["videos_done"] == VIDEOS + 1 - len({name for name, *_ in kept})
    assert report["attempts_lost"] <= 5  # the video that each killed job was reading
    peace = replace(config, output=str(tmp_path / "peace"))
    assert tag.run(peace)["attempts_lost"] == 0
    assert _rows(config.output) == _rows(peace.output)
    assert len(read_videos(config.output)) == VIDEOS + 1


def test_a_second_job_is_refused_and_sigterm_commits_what_is_done(config: TagConfig, tmp_path: Path) -> None:
    running = _started(replace(config, commit_seconds=1e6))
    deadline = time.monotonic() + 120
    while len(list(Path(config.output, "tags").glob("*.parquet"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UserError, match=rf"another job is working on it \(process {running.pid} on"):
        tag.run(config)
    assert running.poll() is None
    assert _commits(config.output) == 1  # the creation of the table
    running.terminate()
    assert "finished videos are kept" in running.communicate()[1]
    assert running.returncode == 3
    done = len(read_videos(config.output))
    assert 6 <= done < VIDEOS + 1
    report = tag.run(config)
    assert (report["videos_done"], report["videos"], report["failed_videos"]) == (VIDEOS + 1 - done, VIDEOS + 1, 1)
    assert tag.run(config)["nothing_new"]
    peace = replace(config, output=str(tmp_path / "peace"))
    tag.run(peace)
    assert _rows(config.output) == _rows(peace.output)


def test_weights_of_the_registry_tag_until_the_alias_moves(config: TagConfig, tmp_path: Path) -> None:
    """The stages read a copy under the output; another version's tags are never mixed in."""
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    asked = replace(config, init="models:/motion@best", output=str(tmp_path / "tags"), tracking=tracking)
    registration = RegisterConfig(init=config.init, name="motion", alias="best", tracking=tracking)
    register(registration)
    assert tag.run(asked)["videos"] == VIDEOS + 1
    assert tag.run(asked)["nothing_new"]
    tag.run(config)
    assert _rows(asked.output) == _rows(config.output)
    torch.manual_seed(1)
    save_model(Path(config.init), create_model("hiera_test_8x64"), {"classes": json.dumps(MOTION_CLASSES)})
    register(registration)
    with pytest.raises(UserError, match=r"holds tags made with other settings \(weights_digest: "):
        tag.run(asked)
    assert len(list((tmp_path / "tags" / "initial").iterdir())) == 1


def test_junk_beside_good_videos_is_a_warning(config: TagConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Who may upload cannot switch tagging off: FIFOs, links to devices, text and bombs cost a row each."""
    source = Path(config.source)
    for number in range(VIDEOS):
        (source / f"text{number:02d}.mp4").write_text("no video")
    os.mkfifo(source / "fifo.mp4")
    (source / "zero.mp4").symlink_to("/dev/zero")
    write_numbered(source / "bomb.mkv", 2, times=[0.0, 43_000.0], b_frames=0)
    report = tag.run(config)
    assert report["failures_by_reason"] == {"not_a_video": VIDEOS + 1, "not_a_file": 2, "max_repeated_windows": 1}
    assert report["failed_videos"] == VIDEOS + 4
    failed, videos = VIDEOS + 4, 2 * VIDEOS + 4
    assert (
        f"{failed} of {videos} videos have failed (not_a_video: {VIDEOS + 1}, not_a_file: 2" in capsys.readouterr().err
    )
    assert tag.run(config)["nothing_new"]


def test_surroundings_that_cannot_be_right_stop_the_job(config: TagConfig, tmp_path: Path) -> None:
    videos = sorted(map(str, Path(config.source).rglob("*.mp4")))
    (tmp_path / "list.csv").write_text("\n".join(["path", *videos, *(f"/unmounted/{n}.mp4" for n in range(30))]))
    listed = replace(config, source=str(tmp_path / "list.csv"), commit_seconds=1e6)
    with pytest.raises(WorkStoppedError, match=r"videos have failed \(missing: \d+\); look at /unmounted/"):
        tag.run(listed)
    kept = len(read_videos(config.output))  # what is finished, the task included that was one too many
    assert 30 * 0.5 < kept < len(videos) + 30
    report = tag.run(replace(listed, max_failed_share=0.99))
    assert report["failures_by_reason"]["missing"] == 30
    assert report["videos_done"] == len(videos) + 30 - kept


def test_links_that_lead_nowhere_beside_good_videos_are_a_warning(
    config: TagConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """They sort first, and are more than half of all: each a row, and settled."""
    source = Path(config.source)
    for number in range(VIDEOS + 4):
        (source / f"a{number:02d}.mp4").symlink_to("/nowhere/video.mp4")
    for number in range(3):
        (source / f"b{number}.mp4").symlink_to(f"b{number}.mp4")
    report = tag.run(config)
    assert report["failures_by_reason"] == {"missing": VIDEOS + 4, "unreadable": 3, "not_a_video": 1}
    assert f"{VIDEOS + 8} of {2 * VIDEOS + 8} videos have failed (missing: {VIDEOS + 4}" in capsys.readouterr().err
    assert tag.run(config)["videos"] == 2 * VIDEOS + 8
    (source / "a00.mp4").unlink()
    (source / "a00.mp4").symlink_to(next(path for path in source.rglob("*.mp4") if not path.is_symlink()))
    assert tag.run(config)["failures_by_reason"]["missing"] == VIDEOS + 3


def test_links_whose_volume_is_lost_do_not_cost_the_rows(config: TagConfig, tmp_path: Path) -> None:
    """A collection of links to a volume that is no longer mounted is as one whose files are missing."""
    links = tmp_path / "links"
    links.mkdir()
    for path in Path(config.source).rglob("*.mp4"):
        (links / path.name).symlink_to(path)
    linked = replace(config, source=str(links))
    done = tag.run(linked)["videos"]
    os.rename(config.source, tmp_path / "unmounted")
    with pytest.raises(VanishedSourceError, match=rf"{done} of {done} are missing"):
        tag.run(linked)


def test_object_storage_on_a_bad_day(config: TagConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of all requests fail, stall or break off, for source and output: the snapshot of a day in peace."""
    tag.run(config)
    with light_s3_server() as server:
        set_s3_environment(monkeypatch, server)
        object_storage.s3_client().create_bucket(Bucket="tags")
        for path in Path(config.source).rglob("*.*"):
            write_bytes(join("s3://tags/in", path.name), path.read_bytes())
        with faulty_proxy(server, share=0.2, stall_seconds=1.0) as (url, counts):
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            report = tag.run(replace(config, source="s3://tags/in", output="s3://tags/out"))
        assert all(counts[fault] for fault in FAULTS)
        assert (report["videos"], report["failures_by_reason"]) == (VIDEOS + 1, {"not_a_video": 1})
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        assert _rows("s3://tags/out") == _rows(config.output)


def _rows(output: str) -> list[Any]:
    rows = read_tags(output).to_pylist()
    keys = [
        (row["uri"].rsplit("/", 1)[-1], row["window_index"], tuple(row["labels"]), tuple(np.round(row["scores"], 4)))
        for row in rows
    ]
    assert len(keys) == len(set(keys))
    return sorted(keys, key=str)
