"""Which classifiers the scoring commands take, and in which arithmetic. No Ray."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hiera_video.models.presets import create_model, model_config
from hiera_video.weights.checkpoint_files import huggingface_state_dict, official_state_dict, save_model
from jobs import export
from jobs.core.errors import UserError
from jobs.scoring.classifier import Classifier, PublicWeightsConfig, find_classifier


def official(path: Path, classes: int = 400) -> Path:
    torch.manual_seed(0)
    model = create_model("hiera_test_8x64", num_classes=classes, head_init_scale=10.0)
    torch.save({"model_state": official_state_dict(model)}, path)
    return path


def test_official_weights_of_400_classes_are_kinetics(tmp_path: Path) -> None:
    found = find_classifier(str(official(tmp_path / "hiera.pth")))
    assert (found.input_size, len(found.classes)) == ((8, 64, 64), 400)
    assert (found.classes[0], found.classes[399]) == ("abseiling", "zumba")
    assert found.architecture == model_config("hiera_test_8x64", num_classes=400)


def test_scores_are_those_of_the_model_that_was_saved(tmp_path: Path) -> None:
    path = official(tmp_path / "hiera.pth")
    architecture = find_classifier(str(path)).architecture
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 64, 64, 3), np.uint8)
    exact = Classifier(str(path), "fp32", False, architecture).score(video)[0]
    assert exact.max() > 0.01  # not flat, so that a difference shows
    np.testing.assert_allclose(exact.sum(1), 1, rtol=1e-5)
    for precision in ("bf16", "fp16"):
        scores = Classifier(str(path), precision, False, architecture).score(video)[0]  # type: ignore[arg-type]
        assert 0 < np.abs(scores - exact).max() < 0.05 * exact.max()
        assert (scores.argmax(1) == exact.argmax(1)).all()


def test_weights_on_a_hub_carry_official_names_in_safetensors(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64", num_classes=3)
    save_file(official_state_dict(model), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c"]))
    public = PublicWeightsConfig(classes=str(tmp_path / "names.json"))
    assert find_classifier(str(tmp_path), public).classes == ("a", "b", "c")
    with pytest.raises(UserError, match=r"classes=kinetics400: names 400 classes, .* has 3"):
        find_classifier(str(tmp_path), PublicWeightsConfig(classes="kinetics400"))


def test_weights_of_an_untracked_run_are_no_other_runs(tmp_path: Path) -> None:
    """Their own run has no id: the one that they were fine-tuned from must not take credit for them."""
    facts = {"command": "finetune", "run_id": "", "finetune_run_id": "former", "pretrain_run_id": "p"}
    save_model(tmp_path / "model.safetensors", create_model("hiera_test_8x64", num_classes=2), facts)
    assert find_classifier(str(tmp_path)).links == {"pretrain_run_id": "p"}


def test_what_is_no_video_classifier_is_refused(tmp_path: Path) -> None:
    images = create_model("hiera_tiny_224", num_classes=4)
    save_file(huggingface_state_dict(images), tmp_path / "images.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is a classifier of images; give a classifier of videos"):
        find_classifier(str(tmp_path / "images.safetensors"))
    torch.save(official_state_dict(create_model("mae_hiera_test_8x64")), tmp_path / "mae.pth")
    with pytest.raises(UserError, match="holds no classification head"):
        find_classifier(str(tmp_path / "mae.pth"))
    with pytest.raises(UserError, match="hiera_base_16x224 with these options does not have the shapes"):
        find_classifier(str(official(tmp_path / "w.pth")), PublicWeightsConfig(model="hiera_base_16x224"))
    save_model(tmp_path / "own.safetensors", create_model("hiera_test_8x64"))
    with pytest.raises(UserError, match="are for public weights"):
        find_classifier(str(tmp_path / "own.safetensors"), PublicWeightsConfig(model="hiera_test_8x64"))


def test_an_export_without_its_head_is_refused(tmp_path: Path) -> None:
    classes = {"classes": json.dumps(["a"] * 8)}
    save_model(tmp_path / "classifier.safetensors", create_model("hiera_test_8x64"), classes)
    exported = export.ExportConfig(
        init=str(tmp_path / "classifier.safetensors"), output=str(tmp_path / "encoder.safetensors")
    )
    export.run(exported)
    with safe_open(exported.output, framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"encoder"}  # noqa: SIM118
    with pytest.raises(UserError, match="contains the encoder of a classifier without its head; fine-tune from it"):
        find_classifier(exported.output)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"input_size": "abc"}, "model_overrides.input_size=abc: "), ({"stages": 5}, "model_overrides.stages=5: "),
     ({"embed_dim": "x"}, "model_overrides.embed_dim=x: "), ({"input_size": [8, 32, 128]}, "views are square")],
)  # fmt: skip
def test_how_public_weights_differ_is_checked(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = official(tmp_path / "w.pth")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        find_classifier(str(file), PublicWeightsConfig(model="hiera_test_8x64", model_overrides=overrides))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"model_state": Harmful()}))
    with pytest.raises(UserError, match="weights cannot be read"):
        find_classifier(str(tmp_path / "w.pth"))
    assert not (tmp_path / "harm").exists()
