"""Which classifiers can be scored on which prepared sets. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import official_state_dict, save_model
from jobs.core.errors import UserError
from jobs.core.init_source import SAMPLING
from jobs.scoring.classifier import find_classifier
from jobs.scoring.compatibility import match_classes, refuse_other_protocol, warn_other_sampling, with_class_names
from pipeline.datasets.evaluation import ViewProtocol
from pipeline.schema import UNLABELLED
from pipeline.shards.reader import PreparedSet


def prepared(*classes: str) -> PreparedSet:
    return PreparedSet("set", 1, "digest", classes, (), {})


def _public(path: Path, classes: int = 3) -> Path:
    torch.save({"model_state": official_state_dict(create_model("hiera_test_8x64", num_classes=classes))}, path)
    return path


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    found = find_classifier(str(_public(tmp_path / "w.pth", classes=400)))
    assert match_classes(found, prepared("zumba", "abseiling")) == {0: (399,), 1: (0,), UNLABELLED: ()}


def test_nameless_weights_take_the_sets_names_where_there_are_as_many(tmp_path: Path) -> None:
    found = find_classifier(str(_public(tmp_path / "w.pth")))
    assert not found.has_class_names
    assert with_class_names(found, prepared("up", "down", "still")).classes == ("up", "down", "still")
    with pytest.raises(UserError, match=r"has 3 classes without names, .* has 2"):
        with_class_names(found, prepared("up", "down"))


def test_frames_that_are_chosen_otherwise_than_in_training_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"classes": json.dumps(["a"] * 8), SAMPLING: json.dumps({"sampling": "stride", "frame_stride": 2})}
    save_model(tmp_path / "w.safetensors", create_model("hiera_test_8x64"), facts)
    weights = find_classifier(str(tmp_path / "w.safetensors"))
    warn_other_sampling(weights, "stride", 2)
    assert capsys.readouterr().err == ""
    warn_other_sampling(weights, "uniform", 4)
    assert "give sampling=stride frame_stride=2 to score it so" in " ".join(capsys.readouterr().err.split())


def test_labels_of_several_parts(tmp_path: Path) -> None:
    save_model(
        tmp_path / "w.safetensors",
        create_model("hiera_test_8x64", num_classes=3),
        {"classes": json.dumps(["jump", "run", "swim"])},
    )
    weights = find_classifier(str(tmp_path / "w.safetensors"))
    several = match_classes(weights, prepared("jump|swim", "run"), "|")
    assert several == {0: (0, 2), 1: (1,), UNLABELLED: ()}
    with pytest.raises(UserError, match=r"has 1 classes that the classifier was not trained on \(jump\|swim\)"):
        match_classes(weights, prepared("jump|swim", "run"))


def test_an_image_has_one_view(tmp_path: Path) -> None:
    save_model(tmp_path / "images.safetensors", create_model("hiera_test_96"))
    save_model(tmp_path / "videos.safetensors", create_model("hiera_test_8x64"))
    images, videos = (find_classifier(str(tmp_path / f"{kind}.safetensors")) for kind in ("images", "videos"))
    refuse_other_protocol(images, ViewProtocol(1, 1))
    refuse_other_protocol(videos, ViewProtocol(5, 3))
    with pytest.raises(UserError, match=r"views.clips=5 views.crops=3: an image has one view; take the recipe in1k"):
        refuse_other_protocol(images, ViewProtocol(5, 3))
