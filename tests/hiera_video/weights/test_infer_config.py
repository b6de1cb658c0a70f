"""The preset of public weights is inferred from their shapes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hiera_video.models.presets import create_model, model_config
from hiera_video.weights.checkpoint_files import official_state_dict
from hiera_video.weights.infer_config import recognize_classifier

SHRUNK = {"embed_dim": 8, "stages": (1, 1, 2, 1)}


def written(path: Path, name: str, **overrides: object) -> Path:
    with torch.device("meta"):
        shapes = official_state_dict(create_model(name, **overrides))
    tensors = {key: torch.zeros(value.shape) for key, value in shapes.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model_state": tensors}, path)
    return path


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_base_224", "hiera_base_16x224", "hiera_base_plus_16x224"])
def test_presets_are_recognised(name: str, tmp_path: Path) -> None:
    classes = 400 if "16x" in name else 1000
    assert recognize_classifier(written(tmp_path / "w.pth", name, num_classes=classes)) == model_config(name)


def test_the_number_of_classes_and_the_file_format_do_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors", "hiera_test_8x64", num_classes=174)
    assert recognize_classifier(path) == model_config("hiera_test_8x64", num_classes=174)


def test_a_changed_model_config_needs_its_preset_and_overrides(tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth", "hiera_base_16x224", **SHRUNK)
    with pytest.raises(ValueError, match="a preset with these options does not have the shapes"):
        recognize_classifier(path)
    found = recognize_classifier(path, "hiera_base_16x224", **SHRUNK)
    assert found == model_config("hiera_base_16x224", **SHRUNK)


def test_another_preset_or_no_head_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth", "hiera_test_8x64")
    with pytest.raises(ValueError, match="hiera_base_16x224 with these options does not have the shapes"):
        recognize_classifier(path, "hiera_base_16x224")
    with pytest.raises(ValueError, match="did you mean hiera_test_8x64"):
        recognize_classifier(path, "mae_hiera_test_8x64")
    with pytest.raises(ValueError, match="holds no classification head"):
        recognize_classifier(written(tmp_path / "m.pth", "mae_hiera_test_8x64"))
