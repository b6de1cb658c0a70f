"""`init=models:/NAME@ALIAS`: from a real registry, without Ray; `test_register` has what `jobs.register` stores."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs import export
from jobs.core.cli import existing_paths
from jobs.core.errors import UserError
from jobs.core.init_source import initial_metadata, links_of
from jobs.runs.tracking import TrackingTarget
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import find_classifier, shared
from jobs.training.steps.pretrain import PretrainConfig
from jobs.weights.registry import initial_file
from tests.support.registry import CLASSES, NAME, motion_registry, stored


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return motion_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def tracking(registry: MlflowClient) -> TrackingConfig:
    registry.set_registered_model_alias("motion", "best", "1")
    return TrackingConfig(registry.tracking_uri)


@pytest.mark.parametrize(("init", "version"), [(f"{NAME}@best", 1), (f"{NAME}/2", 2), (f"{NAME}/1", 1)])
def test_the_file_is_the_one_that_was_registered(tracking: TrackingConfig, init: str, version: int) -> None:
    with initial_file(init, tracking, None) as file:
        assert Path(file).read_bytes() == stored(tracking.uri, version)
        assert json.loads(initial_metadata(file)["classes"]) == list(CLASSES)
        assert links_of(initial_metadata(file)) == {"pretrain_run_id": "p1", "finetune_run_id": "f1"}
    assert not Path(file).exists()


def test_other_places_are_left_alone(tmp_path: Path) -> None:
    with initial_file(str(tmp_path), TrackingConfig("none"), None) as place:
        assert place == str(tmp_path)


@pytest.mark.parametrize(
    ("init", "told"),
    [
        (
            "models:/motions@best",
            r".*motions.* not found at sqlite:.*; give one of.*: .*motion, other",
        ),
        ("models:/motion@worst", r".*alias worst not found at .*: @best, /2 \(the newest\)"),
        ("models:/motion/9", r".*version=9\) not found at .*: @best, /2 \(the newest\)"),
        ("models:/motion/Production", r"must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/motion", r"must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/other/1", r"version 1 has no artifacts/model\.safetensors, which `python -m jobs\.register` stores"),
    ],
)
def test_what_is_not_there_is_told(tracking: TrackingConfig, init: str, told: str) -> None:
    with pytest.raises(UserError, match=f"^init={re.escape(init)}: .*{told}"), initial_file(init, tracking, None):
        pass


def test_a_registry_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "typo.db"
    for uri, told in (
        ("http://me:hunter2@127.0.0.1:9", r"tracking\.uri=.*does not give init=models:/motion@best.*check the server"),
        (f"sqlite:///{missing}", r"tracking\.uri=.*no such database"),
        ("none", r"tracking\.uri: is required here"),
    ):
        with pytest.raises(UserError, match=told), initial_file(f"{NAME}@best", TrackingConfig(uri), None):
            pass
    assert not missing.exists()


def test_a_classifier_says_what_was_asked_and_is_read_where_workers_can(
    registry: MlflowClient, tracking: TrackingConfig, tmp_path: Path
) -> None:
    init = f"{NAME}@best"
    with initial_file(init, tracking, None) as file:
        found = find_classifier(init, fetched=file)
        kept = shared(found, str(tmp_path))
    assert (kept.uri, kept.classes, kept.input_size) == (init, CLASSES, (8, 64, 64))
    assert dict(kept.links) == {"pretrain_run_id": "p1", "finetune_run_id": "f1"}
    assert Path(kept.file) == tmp_path / "initial" / f"{kept.digest}.safetensors"
    registry.set_registered_model_alias("motion", "best", "2")
    with initial_file(init, tracking, None) as file:
        assert find_classifier(init, fetched=file).digest != kept.digest


def test_export(tracking: TrackingConfig, tmp_path: Path) -> None:
    output = str(tmp_path / "model.safetensors")
    asked = export.ExportConfig(init=f"{NAME}/2", output=output, part="model", tracking=TrackingTarget(tracking.uri))
    assert export.run(asked)["run_id"] == "f1"
    assert json.loads(initial_metadata(output)["classes"]) == list(CLASSES)
    assert "which a dry run does not contact" in existing_paths(asked)["init"]


def test_weights_of_an_untracked_run_name_no_run_that_they_are_not_of(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    facts = {"command": "finetune", "run_id": "", "finetune_run_id": "f0", "pretrain_run_id": "p0"}
    save_model(file, create_model("hiera_test_8x64", num_classes=2), facts)
    assert links_of(initial_metadata(str(file))) == {"pretrain_run_id": "p0"}


def test_pretraining_refuses_a_registered_classifier(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^init=models:/motion@best: the registry holds classifiers"):
        PretrainConfig(data="/set", init=f"{NAME}@best", output=str(tmp_path), epochs=1)


def test_export_tells_a_wrong_place_of_the_registry() -> None:
    with pytest.raises(ValueError, match=r"uri=mlflow\.db: must begin with"):
        TrackingTarget("mlflow.db")


def test_a_lost_artifact_is_told(registry: MlflowClient, tracking: TrackingConfig, tmp_path: Path) -> None:
    shutil.copytree(Path(str(tracking.uri).removeprefix("sqlite:///")).parent / "1", tmp_path / "gone")
    registry.create_registered_model("gone")
    registry.create_model_version("gone", (tmp_path / "gone").as_uri())
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(UserError, match="has no artifacts/model"), initial_file("models:/gone/1", tracking, None):
        pass
