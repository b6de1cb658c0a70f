"""The weights that `init` names: of a run, of one of its checkpoints, of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.checkpoints.store import Checkpoint, write_checkpoint
from jobs.checkpoints.stored_weights import StoredWeights, Which, stored_weights
from jobs.core.errors import UserError
from jobs.runs.tracking_config import TrackingConfig

NAME = "hiera_test_8x64"
RECIPE = {"model": NAME, "model_overrides": {"num_classes": 9}, "seed": 4}  # the data had 3 classes, not 9


def model(seed: int, name: str = NAME, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, **changes)


def read(init: Path, which: Which = "last") -> StoredWeights:
    return stored_weights(str(init), which, TrackingConfig(uri="none"))


def same(found: StoredWeights, expected: dict[str, Tensor]) -> bool:
    assert found.tensors.keys() == expected.keys()
    return all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())


def begin(output: Path, recipe: dict[str, Any] = RECIPE) -> Path:
    """A run that has been claimed."""
    output.mkdir()
    (output / "config.yaml").write_text(yaml.safe_dump(recipe))
    (output / "run.json").write_text(json.dumps({"run_key": "k", "config": {}, "pins": {"command": "finetune"}}))
    return output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has not ended: checkpoints of steps 1, 2 and 3, of which 2 was the best."""
    output = begin(tmp_path / "run")
    for step, metric in ((1, 0.5), (2, 0.1), (3, 0.3)):
        weights = model(step, num_classes=3).state_dict()
        write_checkpoint(str(output), Checkpoint(step, step, weights, {}, {"mlflow_run_id": "m"}, metric))
    return output


def test_of_a_run_that_goes_the_checkpoints_count(run: Path) -> None:
    for which, step in (("last", 3), ("best", 2)):
        found = read(run, which)  # type: ignore[arg-type]
        assert same(found, model(step, num_classes=3).state_dict())
        facts = {name: found.metadata[name] for name in ("command", "run_key", "run_id", "step")}
        assert facts == {"command": "finetune", "run_key": "k", "run_id": "m", "step": str(step)}
        assert yaml.safe_load(found.metadata["recipe"]) == RECIPE


@pytest.mark.parametrize("end", ["", "/"])
def test_one_checkpoint_by_its_step(end: str, run: Path) -> None:
    found = stored_weights(f"{run}/checkpoints/step-00000001{end}", "last", TrackingConfig(uri="none"))
    assert same(found, model(1, num_classes=3).state_dict())


def test_of_a_run_that_has_ended_its_files_count(run: Path) -> None:
    for seed, name in ((8, "model"), (9, "best")):
        save_model(run / f"{name}.safetensors", model(seed), {"run_id": name})
    for which, seed, name in (("last", 8, "model"), ("best", 9, "best")):
        found = read(run, which)  # type: ignore[arg-type]
        assert same(found, model(seed).state_dict())
        assert found.metadata["run_id"] == name
        assert yaml.safe_load(found.metadata["recipe"]) == RECIPE


def test_a_file_alone_has_no_recipe(tmp_path: Path) -> None:
    save_model(tmp_path / "some.safetensors", model(5), {"run_id": "r"})
    found = read(tmp_path / "some.safetensors")
    assert same(found, model(5).state_dict())
    assert "recipe" not in found.metadata


def test_a_pretraining_keeps_its_mask_ratio(tmp_path: Path) -> None:
    recipe = {"model": f"mae_{NAME}", "model_overrides": {"decoder_depth": 1}, "mask_ratio": 0.75}
    output = begin(tmp_path / "pretrained", recipe)
    weights = model(6, f"mae_{NAME}", decoder_depth=1).state_dict()
    write_checkpoint(str(output), Checkpoint(1, 1, weights, {}))
    found = read(output)
    assert same(found, dict(weights))
    assert json.loads(found.metadata["config"])["mask_ratio"] == 0.75


def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step-00000007: must be a complete checkpoint; .* has those of steps 1, 2, 3"):
        read(run / "checkpoints" / "step-00000007")
    with pytest.raises(UserError, match=r"must hold weights or a complete checkpoint; give the output of a training"):
        read(begin(tmp_path / "new"))
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=rf"^init={run}: .*config\.yaml.*give the output of a training run"):
        read(run)


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    output = begin(tmp_path / "run")
    write_checkpoint(str(output), Checkpoint(1, 1, model(1, num_classes=3).state_dict(), {}))
    with pytest.raises(UserError, match=r"^weights=best: no checkpoint of .* was validated; use weights=last$"):
        read(output, "best")


def test_tensors_of_other_origin_are_refused(tmp_path: Path) -> None:
    from_elsewhere = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, from_elsewhere)
    with pytest.raises(UserError, match=rf"^init={from_elsewhere}: .*give the output of a run, or a file that `save_"):
        read(from_elsewhere)
