"""`like=`: a window of the table by its URI or the end of it, or a file, embedded as the tags were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.errors import UserError
from jobs.finding.query import Moment, OutsideConfig, query_of, stored_query
from jobs.finding.windows import open_snapshot, scored_parts, unit_embeddings, unit_length
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.tag import TagConfig
from jobs.tag import run as tag
from jobs.tagging import job
from pipeline.decode.config import DecodeConfig
from tests.support.tag_here import runner_here
from tests.support.tag_output import commit_embedded

OUTSIDE = OutsideConfig(init=None, decode=DecodeConfig(), tracking=TrackingConfig(uri="none"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source/`` of three videos and ``tag/``, written without Ray; ``other.safetensors``."""
    folder = tmp_path_factory.mktemp("found")
    render_motion_videos(folder / "source", 3, seed=1, size=64, num_frames=50)
    for seed, name in enumerate(("w", "other")):
        torch.manual_seed(seed)
        metadata = {"classes": json.dumps(MOTION_CLASSES), "command": "finetune"}
        save_model(folder / f"{name}.safetensors", create_model("hiera_test_8x64"), metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "task_runner", runner_here)
        tag(
            TagConfig(
                source=str(folder / "source"), init=str(folder / "w.safetensors"), output=str(folder / "tag"),
                window_seconds=0.7, hop_seconds=0.5, embeddings=True, gallery_videos=0,
                tracking=TrackingConfig(uri="none"),
            )
        )  # fmt: skip
    return folder


def _message(given: str, folder: Path, **changes: Any) -> str:
    outside = OutsideConfig(**{**OUTSIDE.__dict__, **changes})
    with pytest.raises(UserError) as error:
        query_of(Moment.of(given), open_snapshot(str(folder / "tag"), None), outside)
    return str(error.value)


def test_the_form() -> None:
    assert Moment.of("a@b@2s") == Moment("a@b@2s", "a@b", 2.0)
    assert Moment.of("s3://b/k.mp4@12.5").seconds == 12.5
    with pytest.raises(ValueError, match=r"like=a\.mp4: must be VIDEO@SECONDS; give for instance like=video\.mp4@12"):
        Moment.of("a.mp4")


def test_a_window_of_the_table_is_the_one_around_the_moment(tmp_path: Path) -> None:
    vectors = np.eye(4)[:3]
    commit_embedded(str(tmp_path), {"/x/a.mp4": vectors, "/y/a.mp4": vectors[::-1], "/x/ba.mp4": vectors})
    snapshot = open_snapshot(str(tmp_path), None)
    query = stored_query(Moment.of("/x/a.mp4@1.2s"), snapshot)
    assert query is not None
    assert (query.uri, query.window_index, query.embedding.tolist()) == ("/x/a.mp4", 1, [0, 1, 0, 0])
    assert stored_query(Moment.of("none.mp4@1s"), snapshot) is None
    assert stored_query(Moment.of("ba.mp4@3s"), snapshot)._replace(embedding=np.empty(0))[1:] == ("/x/ba.mp4", 2)
    with pytest.raises(UserError, match=r"2 videos have this name \(\['/x/a.mp4', '/y/a.mp4'\]\); give one's URI"):
        stored_query(Moment.of("a.mp4@1s"), snapshot)
    with pytest.raises(UserError, match="its last scored window ends at 3 s; give an earlier time"):
        stored_query(Moment.of("x/a.mp4@3.1s"), snapshot)


def test_a_file_outside_has_the_embedding_that_tag_stores(folder: Path, tmp_path: Path) -> None:
    snapshot = open_snapshot(str(folder / "tag"), None)
    video = sorted((folder / "source").rglob("*.*4"))[0]
    copy = tmp_path / f"copy{video.suffix}"
    shutil.copy(video, copy)
    stored = query_of(Moment.of(f"{video.name}@0.9s"), snapshot, OUTSIDE)
    outside = query_of(Moment.of(f"{copy}@0.9s"), snapshot, OUTSIDE)
    assert (stored.uri, stored.window_index, outside.uri) == (str(video), 1, None)
    assert float(unit_length(outside.embedding) @ stored.embedding) == pytest.approx(1.0, abs=1e-5)
    everything = np.concatenate([unit_embeddings(part) for part in scored_parts(snapshot, ["embedding"])])
    assert np.argmax(everything @ unit_length(outside.embedding)) == np.argmax(everything @ stored.embedding)


def test_mistakes_with_a_file_are_one_message(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    video = shutil.copy(next((folder / "source").rglob("*.*4")), tmp_path)
    assert "neither a scored video of the table nor a file; check the name" in _message("nothing.mp4@1s", folder)
    assert "not_a_video: " in _message(f"{broken}@0s", folder)
    moved = tmp_path / f"moved{Path(video).suffix}"
    Path(video).rename(moved)
    assert "lasts 1.66667 s; give an earlier time" in _message(f"{moved}@9s", folder)
    other = str(folder / "other.safetensors")
    assert "give those weights" in (found := _message(f"{moved}@1s", folder, init=other))
    assert found.startswith(f"init={other}: has the digest ")
