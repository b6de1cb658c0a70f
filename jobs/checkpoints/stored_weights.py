"""The weights that `init` names, whatever it is: a run, one of its checkpoints, a file, or a registered model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import yaml
from torch import Tensor

from hiera_video.models.hiera import Hiera
from hiera_video.weights.checkpoint_files import filled_model, read_metadata, save_model, stored_config
from jobs.checkpoints.store import Checkpoint, best_checkpoint, complete_steps, latest_checkpoint, read_checkpoint
from jobs.core.errors import UserError
from jobs.core.holdings import CLAIM, is_registered
from jobs.core.init_source import BEST_WEIGHTS, HUB_CONFIG, WEIGHTS, local_weights
from jobs.core.yaml_text import parse_yaml
from jobs.runs.claim import CLAIM_ENTRIES
from jobs.runs.tracking_config import TrackingConfig
from jobs.weights.model_config import OVERRIDES, overridden_config
from jobs.weights.registry import initial_file
from pipeline.storage.files import StorageError, exists, join, read_bytes, read_json

CHECKPOINT = re.compile(r"(.+)/checkpoints/step-(\d+)/?")
Which = Literal["last", "best"]


@dataclass(frozen=True)
class StoredWeights:
    """Tensors by name, and the metadata of their file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def stored_weights(init: str, which: Which, tracking: TrackingConfig) -> StoredWeights:
    """Read the weights that ``init`` names: of a run, the last ones or those that were best in validation.

    Raises:
        UserError: ``init`` holds no such weights.
    """
    if is_registered(init):
        with initial_file(init, tracking, None) as file:
            return _from_file(file)
    if checkpoint := CHECKPOINT.fullmatch(init):
        return _from_checkpoint(init, checkpoint[1], read_checkpoint(checkpoint[1], int(checkpoint[2])))
    if init.endswith(".safetensors"):
        return _from_file(init)
    file = join(init, WEIGHTS if which == "last" else BEST_WEIGHTS)
    if exists(file):
        of_hub = exists(join(init, HUB_CONFIG))  # a folder without the run's configuration
        return _from_file(file) if of_hub else _with_recipe(_from_file(file), init)
    # The run has not ended, so its weights are in its checkpoints alone.
    if which == "last":
        return _from_checkpoint(init, init, latest_checkpoint(init))
    best = best_checkpoint(init)
    if best is None:
        raise UserError(f"weights=best: no checkpoint of {init} was validated; use weights=last")
    return _from_checkpoint(init, init, best)


def classifier_of(init: str, found: StoredWeights) -> Hiera:
    """The classifier that the weights are of, for scoring.

    Raises:
        UserError: they are of another model, or not all of it.
    """
    try:
        model = filled_model(stored_config(init, found.metadata), dict(found.tensors), init)
    except ValueError as error:
        raise UserError(f"init={init}: {str(error).removeprefix(f'{init}: ')}") from error
    if not isinstance(model, Hiera):
        raise UserError(f"init={init}: must be a classifier for this output; fine-tune it first")
    return model.eval()


def _from_file(uri: str) -> StoredWeights:
    with local_weights(uri) as path:
        try:
            metadata = read_metadata(path)
            if "config" not in metadata:
                raise ValueError(f"{uri}: must carry a model config of this project")
            return StoredWeights(safetensors.torch.load_file(path), metadata)
        except ValueError as error:
            raise UserError(
                f"init={uri}: {error}; give the output of a run, or a file that `save_model` wrote"
            ) from error


def _from_checkpoint(init: str, output: str, checkpoint: Checkpoint | None) -> StoredWeights:
    if checkpoint is None:
        steps = complete_steps(output)
        raise UserError(
            f"init={init}: must be a complete checkpoint; {output} has those of steps {', '.join(map(str, steps))}"
            if steps
            else f"init={init}: must hold weights or a complete checkpoint; give the output of a training run"
        )
    try:
        model = filled_model(_model_config(_recipe(output), checkpoint.weights), dict(checkpoint.weights), init)
    except ValueError as error:
        raise UserError(f"init={init}: {str(error).removeprefix(f'{init}: ')}") from error
    claim = read_json(join(output, CLAIM), CLAIM_ENTRIES)
    facts = {
        "command": str(claim["pins"].get("command", "")),
        "run_key": str(claim["run_key"]),
        "run_id": str(checkpoint.extra.get("mlflow_run_id") or ""),
        "step": str(checkpoint.step),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        save_model(path, model, facts)
        return _with_recipe(StoredWeights(safetensors.torch.load_file(path), read_metadata(path)), output)


def _with_recipe(found: StoredWeights, output: str) -> StoredWeights:
    return StoredWeights(found.tensors, {**found.metadata, "recipe": yaml.safe_dump(_recipe(output), sort_keys=False)})


def _recipe(output: str) -> dict[str, Any]:
    """The run's resolved configuration."""
    try:
        recipe = parse_yaml(read_bytes(join(output, "config.yaml")))
    except (StorageError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"init={output}: {error}; give the output of a training run") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get(OVERRIDES), dict) or "model" not in recipe:
        raise UserError(f"init={output}: its config.yaml is damaged; give the output of a training run")
    return recipe


def _model_config(recipe: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    if "head.weight" in weights:  # a classifier; its number of classes came from the data
        overrides = {key: value for key, value in recipe[OVERRIDES].items() if key != "num_classes"}
        return overridden_config(recipe["model"], overrides, num_classes=weights["head.weight"].shape[0])
    return overridden_config(recipe["model"], recipe[OVERRIDES], mask_ratio=recipe["mask_ratio"])
