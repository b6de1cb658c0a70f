"""Videos of a task become rows and files. The models answer at once; no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.config import load_config
from jobs.scoring.classifier import find_classifier
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.tagging.config import ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.job_log import Begin, State
from jobs.tagging.stage import FinishedTask, TagVideos, answer
from jobs.tagging.tasks import cut_into_tasks
from pipeline.decode.config import DecodeError
from pipeline.tagging.reader import KnownVideos, read_files
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from pipeline.tagging.source import list_source, new_or_changed
from pipeline.tagging.windows import video_id


def _plan(folder: Path, *keys: str) -> ScoringPlan:
    model = create_model("hiera_test_8x64", num_classes=4)
    save_model(folder / "w.safetensors", model, {"classes": json.dumps(["jump", "run", "sing", "swim"])})
    keys = (f"source={folder}", "init=weights", f"output={folder}", *keys)
    return plan_scoring(load_config(TagConfig, "tag", keys), find_classifier(str(folder / "w.safetensors")))


class Models:
    """Gives every window class 1, with the mean of its pixels as score."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def submit(self, video: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        self.batches.append(len(video))
        return video

    def result(self, ticket: npt.NDArray[np.uint8]) -> pa.Table:
        scores = [[float(window.mean() / 255)] for window in ticket]
        return pa.table({"classes": [[1]] * len(ticket), "scores": scores})


class Counted:
    """Counts attempts in memory."""

    def __init__(self) -> None:
        self.state = State({})

    def begin(self, asked: Begin) -> int:
        return self.state.begin(asked)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two videos with four windows each, and one that is none."""
    folder = tmp_path / "source"
    render_motion_videos(folder, 2, seed=1, size=64, num_frames=50)
    (folder / "text.mp4").write_text("no video")
    return folder


def _stage(tmp_path: Path, hop_seconds: float = 0.4) -> tuple[TagVideos, Models]:
    keys = ("window_seconds=0.5", f"hop_seconds={hop_seconds}", "batch_size=3", "threshold=0")
    plan, models = _plan(tmp_path, *keys), Models()
    return TagVideos(plan, str(tmp_path), {"run_key": "k", "run_id": None}, models, Counted()), models


def _tasks(source: Path, size: int) -> list[pa.Table]:
    (part,) = new_or_changed(list_source(str(source)), KnownVideos("nothing"))
    return cut_into_tasks(part, size)


def _run(stage: TagVideos, task: pa.Table) -> tuple[FinishedTask, list[dict[str, Any]], list[dict[str, Any]]]:
    (text,) = stage(task)["finished"].to_pylist()
    finished = FinishedTask.from_json(text)
    tags = read_files([f"{stage.output}/tags/{finished.tags.path}"], tag_schema())
    videos = read_files([f"{stage.output}/videos/{finished.videos.path}"], VIDEO_SCHEMA)
    return finished, tags.to_pylist(), videos.to_pylist()


def test_a_task_is_a_file_for_each_table_and_counts(source: Path, tmp_path: Path) -> None:
    stage, models = _stage(tmp_path)
    (task,) = _tasks(source, 8)
    finished, tags, videos = _run(stage, task)
    assert models.batches == [3, 3, 2]  # full, across videos
    assert (finished.number, finished.num_videos, finished.windows) == (0, 3, 8)
    assert finished.failures == {"not_a_video": 1}
    assert [example[:2] for example in finished.examples] == [("not_a_video", str(source / "text.mp4"))]
    assert json.loads(finished.tags.stats)["numRecords"] == len(tags) == 9
    assert {(row["status"], row["windows"]) for row in videos} == {("ok", 4), ("failed", 0)}
    for row in videos[:2]:
        own = [tag for tag in tags if tag["video_id"] == row["video_id"]]
        assert [tag["window_index"] for tag in own] == [0, 1, 2, 3]
        assert row["labels"] == ["run"]
        assert row["scores"] == pytest.approx([np.mean([tag["scores"][0] for tag in own])])
    assert {(row["run_key"], row["attempts"], len(row["weights_digest"]) > 5) for row in tags + videos} == {
        ("k", 1, True)
    }


def test_what_the_driver_learns_does_not_grow_with_the_rows(source: Path, tmp_path: Path) -> None:
    """File names, bounds and counts: a few hundred bytes a task."""
    (task,) = _tasks(source, 8)
    few, tags, _ = _run(_stage(tmp_path)[0], task)
    many, more_tags, _ = _run(_stage(tmp_path, hop_seconds=0.02)[0], task)
    assert len(more_tags) > 10 * len(tags)
    assert len(many.to_json()) < 1.1 * len(few.to_json())


def test_a_video_that_killed_two_workers_is_not_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, _ = _stage(tmp_path)
    (task,) = _tasks(source, 8)
    bad = video_id(task["uri"][0].as_py(), task["content_version"][0].as_py())
    stage.attempts.state.attempts = {bad: 2}  # type: ignore[attr-defined]
    probe = stage.decode.decoder.probe

    def refused(path: Path) -> Any:
        assert str(path) != task["uri"][0].as_py()
        return probe(path)

    monkeypatch.setattr(stage.decode.decoder, "probe", refused)
    _, _, videos = _run(stage, task)
    assert {row["video_id"]: (row["error_class"], row["attempts"]) for row in videos}[bad] == ("crashed", 2)
    assert sorted(row["status"] for row in videos) == ["failed", "failed", "ok"]


def test_a_video_whose_decoder_died_is_given_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder has tried twice then; a worker that runs the task again does not try."""
    stage, _ = _stage(tmp_path)
    task = _tasks(source, 1)[0]

    def dying(*_: object) -> None:
        raise DecodeError("crashed", "the decoder died")

    monkeypatch.setattr(stage.decode.decoder, "decode", dying)
    for _ in range(2):
        finished, tags, videos = _run(stage, task)
        assert {row["status"] for row in tags} == {"crashed"}
        assert (videos[0]["attempts"], finished.failures) == (2, {"crashed": 1})
        monkeypatch.setattr(stage.decode.decoder, "decode", pytest.fail)


def test_labels_must_reach_their_own_threshold_or_the_common_one(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "threshold=0.2", "thresholds={run: 0.5, sing: 0}")
    kept = answer(4, {"classes": [1, 0, 3, 2], "scores": [0.45, 0.3, 0.15, 0.1]}, plan)
    assert (kept.index, kept.labels, kept.scores, kept.status) == (4, ["jump", "sing"], [0.3, 0.1], "ok")


def test_a_task_counts_whose_fault_its_failures_are(source: Path, tmp_path: Path) -> None:
    """Deleted after the listing: its own fault or its folder's; a link to itself and broken content are the video's."""
    (source / "deleted.mp4").write_bytes(b"x")
    (source / "link.mp4").symlink_to("link.mp4")
    (videos,) = _tasks(source, 8)
    (source / "deleted.mp4").unlink()
    stage, _ = _stage(tmp_path)
    finished = FinishedTask.from_json(stage(videos)["finished"][0].as_py())
    assert finished.failures == {"missing": 1, "unreadable": 1, "not_a_video": 1}
    assert finished.blamed == {"either": {"missing": 1}, "surroundings": {}}
    assert finished.examples[0][:2] == ("missing", str(source / "deleted.mp4"))
