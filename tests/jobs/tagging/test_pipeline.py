"""Which labels a window keeps. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.config import load_config
from jobs.scoring.classifier import find_classifier
from jobs.tagging.config import ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.pipeline import answer


def _plan(folder: Path, *keys: str) -> ScoringPlan:
    model = create_model("hiera_test_8x64", num_classes=4)
    save_model(folder / "w.safetensors", model, {"classes": json.dumps(["jump", "run", "sing", "swim"])})
    keys = ("source=videos", "init=weights", "output=tags", *keys)
    return plan_scoring(load_config(TagConfig, "tag", keys), find_classifier(str(folder / "w.safetensors")))


def test_labels_must_reach_their_own_threshold_or_the_common_one(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "threshold=0.2", "thresholds={run: 0.5, sing: 0}")
    row = {"status": "ok", "message": "", "attempts": 1, "classes": [1, 0, 3, 2], "scores": [0.45, 0.3, 0.15, 0.1]}
    kept = answer(row, plan)
    assert (kept["labels"], kept["scores"]) == (["jump", "sing"], [0.3, 0.1])
    failed = answer(row | {"status": "timeout", "message": "10 s"}, plan)
    assert (failed["labels"], failed["scores"], failed["status"]) == ([], [], "timeout")
