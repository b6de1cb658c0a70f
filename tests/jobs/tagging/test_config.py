"""From the keys of a tagging job to its plan. No Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.scoring.classifier import find_classifier
from jobs.scoring.stage import Answers
from jobs.tagging.config import ScoringPlan, TagConfig, plan_scoring

PATHS = ["source=videos", "init=weights", "output=tags"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = create_model("hiera_test_8x64", num_classes=4)
    save_model(path, model, {"classes": json.dumps(["jump", "run", "sing", "swim"])})
    return str(path)


def _plan(weights: str, *keys: str) -> ScoringPlan:
    return plan_scoring(load_config(TagConfig, "tag", [*PATHS, *keys]), find_classifier(weights))


def test_a_whole_video_is_one_window_of_several_views(weights: str) -> None:
    plan = _plan(weights, "whole_video.clips=5", "labels=[swim,jump]", "embeddings=true", "multi_label=true")
    assert plan.views.grid.window_seconds == math.inf
    assert plan.wanted == Answers(top_k=5, allowed=(0, 3), multi_label=True, views=15, embeddings=True)
    assert (plan.wanted.rows_at_once(16), plan.wanted.rows_at_once(60)) == (1, 4)
    assert plan.embedding_size == create_model("hiera_test_8x64").config.widths[-1]
    settings = json.loads(json.dumps(plan.settings(), allow_nan=False))
    assert settings["whole_video"] == {"clips": 5, "crops": 3, "frame_stride": 4}
    assert "window_seconds" not in settings


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("labels=[fly]", r"labels=\['fly'\]: no labels of init=.*choose among its 4: jump, run, sing, swim"),
        ("thresholds={fly: 0.5}", r"thresholds=\['fly'\]"),
        ("thresholds={run: 2}", r"thresholds\.run=2\.0: must lie between 0 and 1"),
        ("threshold=-1", "threshold=-1.0: must lie"),
        ("max_failed_share=1.5", "max_failed_share=1.5: must lie"),
        ("videos_per_task=0", "videos_per_task=0: must be positive"),
        ("commit_seconds=-1", "commit_seconds=-1.0: must not be negative"),
        ("gallery_videos=-1", "gallery_videos=-1: must not be negative"),
        ("whole_video.crops=2", "whole_video.crops=2: must be 1 or 3"),
    ],
)
def test_mistakes_are_named(weights: str, key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _plan(weights, key)


def test_images_are_tagged_by_their_one_view(tmp_path: Path) -> None:
    save_model(tmp_path / "w.safetensors", create_model("hiera_test_96"))
    views = _plan(str(tmp_path / "w.safetensors")).views
    assert (views.media, views.per_window, views.stacked_size) == ("image", 1, (1, 96, 96))
    with pytest.raises(UserError, match=r"whole_video.clips=5: init=.* classifies images, which have one view"):
        _plan(str(tmp_path / "w.safetensors"), "whole_video.clips=5")
