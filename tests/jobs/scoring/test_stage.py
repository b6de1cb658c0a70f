"""The scoring stage, called without Ray: views of a row, their mean, and the classes that are kept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.scoring.classifier import Classifier, ClassifierWeights, find_classifier
from jobs.scoring.stage import Answers, ScoreViews, best_classes

CLASSES, VIEWS, FRAMES = 5, 3, 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> ClassifierWeights:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = create_model("hiera_test_8x64", num_classes=CLASSES, head_init_scale=10.0)
    save_model(path, model, {"classes": json.dumps(["a", "b", "c", "d", "e"])})
    return find_classifier(str(path))


def _batch(rows: int) -> dict[str, Any]:
    video = np.random.default_rng(0).integers(0, 256, (rows, VIEWS * FRAMES, 64, 64, 3), np.uint8)
    return {"name": np.asarray([f"row {row}" for row in range(rows)], object), "video": video}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("views_at_once", [1, 2, 6, 99])
def test_scores_are_the_mean_of_single_views(weights: ClassifierWeights, multi_label: bool, views_at_once: int) -> None:
    """However many views the model takes at once."""
    wanted = Answers(top_k=CLASSES, multi_label=multi_label, views=VIEWS, embeddings=True)
    batch = _batch(rows=2)
    table = ScoreViews(weights, "fp32", False, ("name",), wanted, views_at_once)(batch)
    assert table["name"].to_pylist() == ["row 0", "row 1"]
    classifier = Classifier(weights.file, "fp32", use_gpu=False)
    for row, video in zip(table.to_pylist(), batch["video"], strict=True):
        singles = [
            classifier.score(video[None, view * FRAMES : (view + 1) * FRAMES], multi_label=multi_label)
            for view in range(VIEWS)
        ]
        scores, features = (np.mean(part, axis=0)[0] for part in zip(*singles, strict=True))
        assert row["classes"] == np.argsort(-scores, kind="stable").tolist()
        np.testing.assert_allclose(row["scores"], np.sort(scores)[::-1], atol=1e-6)
        np.testing.assert_allclose(row["embedding"], features, atol=1e-5)
        assert sum(row["scores"]) == pytest.approx(1) or multi_label


def test_a_row_has_no_embedding_unless_it_is_wanted(weights: ClassifierWeights) -> None:
    table = ScoreViews(weights, "fp32", False, (), Answers(top_k=2, views=VIEWS), 16)(_batch(rows=1))
    assert table.column_names == ["classes", "scores"]
    assert len(table["classes"][0]) == 2


def test_only_allowed_classes_are_ranked() -> None:
    scores = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32)
    best = best_classes(scores, Answers(top_k=2, allowed=(0, 2, 3)))
    assert best["classes"].to_pylist() == [[0, 2], [3, 2]]
    np.testing.assert_allclose(np.array(best["scores"].to_pylist()), [[0.4, 0.2], [0.4, 0.3]])
    assert best_classes(scores, Answers(top_k=9))["classes"].to_pylist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
