"""SIGKILL and SIGTERM to a tagging job at random moments. Its stages run in its own process, without Ray.

`test_tag_faults` does the same to whole jobs with their Ray; here a start costs nothing, so kills can fall anywhere.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs import tag
from jobs.core.cli import replace
from jobs.core.errors import UserError, WorkStoppedError
from jobs.register import RegisterConfig
from jobs.register import run as register
from jobs.runs import exclusive_lock as exclusive_lock
from jobs.runs.tracking import TrackingConfig
from jobs.scoring.stage import ScoreViews
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.tagging import job
from jobs.tagging.config import ScoringPlan, TagConfig
from jobs.tagging.pipeline import WINDOW_COLUMNS, ScoredChunk, answer
from pipeline.decode.config import DecodeConfig
from pipeline.storage import s3 as object_storage
from pipeline.storage.files import join, write_bytes
from pipeline.tagging.reader import read_tags, read_videos
from pipeline.tagging.stages import DecodeWindows, ProbeVideos
from pipeline.tagging.writer import PlannedVersion
from tests.support.faulty_proxy import FAULTS, faulty_proxy
from tests.support.s3_server import light_s3_server, set_s3_environment

pytestmark = pytest.mark.faults

VIDEOS = 12
PACE_SECONDS = 0.02  # longer than the work of a tiny model, so that kills find a job at work


def _probed(fresh: pa.Table, decode: DecodeConfig, _scoring: Any) -> pa.Table:
    return ProbeVideos(decode)(fresh)


def _scored(planned: PlannedVersion, missing: Sequence[int], plan: ScoringPlan) -> Iterator[ScoredChunk]:
    """The stages of `tagging_graph`, one after the other."""
    decode = DecodeWindows(plan.config.decode, plan.views, plan.config.batch_size, planned.begun_folder)
    batch_size = plan.config.batch_size
    score = ScoreViews(plan.weights, plan.config.precision, False, WINDOW_COLUMNS, plan.wanted, batch_size)
    for number in missing:
        batches = decode(planned.chunk(number)) if planned.count_windows([number]) else ()
        rows = [row for batch in batches for row in score(batch).to_pylist()]
        answers = {(row["unit_id"], row["window_index"]): answer(row, plan) for row in rows}
        time.sleep(PACE_SECONDS)
        yield ScoredChunk(number, answers, any(row["repeated"] for row in rows))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TagConfig:
    monkeypatch.setattr(job, "probe_videos", _probed)
    monkeypatch.setattr(job, "scored_chunks", _scored)
    monkeypatch.setattr(exclusive_lock, "HEARTBEAT_SECONDS", 0.2)
    torch.manual_seed(0)
    save_model(tmp_path / "w.safetensors", create_model("hiera_test_8x64"), {"classes": json.dumps(MOTION_CLASSES)})
    render_motion_videos(tmp_path / "source", VIDEOS, seed=3, size=64, num_frames=50)
    (tmp_path / "source" / "broken.mp4").write_text("no video")
    return TagConfig(
        source=str(tmp_path / "source"), init=str(tmp_path / "w.safetensors"), output=str(tmp_path / "killed"),
        window_seconds=0.4, hop_seconds=0.08, batch_size=2, chunk_batches=2, gallery_videos=0,
        tracking=TrackingConfig(uri="none"),
    )  # fmt: skip


def test_five_kills_in_a_row_leave_every_unit_once(config: TagConfig, tmp_path: Path) -> None:
    """Never more than one chunk was being worked on, so no kill costs more than one."""
    draw, output = random.Random(0), Path(config.output)
    done: dict[str, int] = {}
    for _ in range(5):
        running = _started(config)
        _wait_for_chunks(output, len(done) + 2)
        time.sleep(draw.uniform(0, 0.15))
        assert running.is_alive()
        running.kill()
        running.join()
        now = {path.name: path.stat().st_mtime_ns for path in (output / "tags").glob("*.parquet")}
        assert {name: now[name] for name in done} == done
        done = now
    report = tag.run(config)
    assert report["chunks_skipped"] == len(done)
    assert report["chunks_done_again"] <= 5
    peace = replace(config, output=str(tmp_path / "peace"))
    assert tag.run(peace)["chunks_done_again"] == 0
    assert _rows(config.output) == _rows(peace.output)
    assert len(read_videos(config.output)) == VIDEOS + 1


def test_a_second_job_is_refused_and_sigterm_commits_what_is_done(config: TagConfig, tmp_path: Path) -> None:
    running = _started(config)
    _wait_for_chunks(Path(config.output), 5)
    with pytest.raises(UserError, match=r"another job is working on it \(generation 1, process"):
        tag.run(config)
    assert running.is_alive()
    running.terminate()
    running.join()
    done = len(read_videos(config.output))
    assert 0 < done < VIDEOS + 1
    report = tag.run(config)
    assert (report["version"], report["videos"], report["failed_videos"]) == (1, VIDEOS + 1, 1)
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


def test_a_source_that_cannot_be_right_stops_the_job_before_anything_is_planned(config: TagConfig) -> None:
    for number in range(VIDEOS + 2):
        (Path(config.source) / f"text{number:02d}.mp4").write_text("no video")
    with pytest.raises(WorkStoppedError, match=r"15 of 27 videos have failed \(not_a_video: 15\); look at .*broken"):
        tag.run(config)
    assert not (Path(config.output) / "units").exists()
    assert tag.run(replace(config, max_failed_share=0.6))["failed_videos"] == VIDEOS + 3


def test_object_storage_on_a_bad_day(config: TagConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of all requests fail, stall or break off, for source and output: the snapshot of a day in peace."""
    tag.run(config)
    with light_s3_server() as server:
        set_s3_environment(monkeypatch, server)
        monkeypatch.setattr(object_storage, "READ_TIMEOUT_SECONDS", 1)
        object_storage.s3_client().create_bucket(Bucket="tags")
        for path in Path(config.source).rglob("*.*"):
            write_bytes(join("s3://tags/in", path.name), path.read_bytes())
        with faulty_proxy(server, share=0.2, stall_seconds=1.5) as (url, counts):
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            report = tag.run(replace(config, source="s3://tags/in", output="s3://tags/out"))
        assert all(counts[fault] for fault in FAULTS)
        assert (report["videos"], report["failures_by_reason"]) == (VIDEOS + 1, {"not_a_video": 1})
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        assert _rows("s3://tags/out") == _rows(config.output)


def _started(config: TagConfig) -> multiprocessing.process.BaseProcess:
    running = multiprocessing.get_context("fork").Process(target=tag.run, args=(config,))
    running.start()
    return running


def _wait_for_chunks(output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list((output / "tags").glob("*.parquet"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _rows(output: str) -> list[Any]:
    rows = read_tags(output).to_pylist()
    keys = [
        (row["uri"].rsplit("/", 1)[-1], row["window_index"], tuple(row["labels"]), tuple(np.round(row["scores"], 5)))
        for row in rows
    ]
    assert len(keys) == len(set(keys))
    return sorted(keys, key=str)
