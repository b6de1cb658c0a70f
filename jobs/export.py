"""Write a run's encoder, or its whole model, as one safetensors file that carries its resolved configuration, or a
classifier as a `torch.export` program, which needs neither this project nor the model's code.

Usage: ``python -m jobs.export init=RUN_OUTPUT output=encoder.safetensors [part=model] [weights=best]``
       ``python -m jobs.export init=FINETUNE_OUTPUT output=classifier.pt2``
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import yaml
from torch import Tensor

from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import build_model
from hiera_video.weights.checkpoint_files import load_model, read_metadata, save_model
from jobs.checkpoints.store import Checkpoint, best_checkpoint, complete_steps, latest_checkpoint, read_checkpoint
from jobs.core.cli import run_command
from jobs.core.errors import UserError
from jobs.core.init_source import BEST_WEIGHTS, ENCODER, RUN_LINK, WEIGHTS, is_registered, local_weights
from jobs.runs.tracking import TrackingConfig, TrackingPlace
from jobs.weights.model_config import OVERRIDES, architecture
from jobs.weights.registry import initial_file
from jobs.weights.torch_export import export_program
from pipeline.storage.files import StorageError, exists, join, read_bytes, write_bytes

DESCRIPTION = (
    "Write a run's encoder, or its whole model, as safetensors with the resolved configuration; or a classifier as a "
    "torch.export program (`output=....pt2`) from uint8 frames [B, T, H, W, 3] to scores [B, classes], checked against "
    "the model."
)
PROGRAM = ".pt2"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and where to."""

    init: str
    """Output of a training run, finished or not; one of its checkpoints (`.../checkpoints/step-N`); a `.safetensors`
    file of this project; or a model of the MLflow registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`)."""
    output: str
    """The file to write: path, file:// or s3://. `.safetensors`, or `.pt2` for a classifier as a program."""
    part: Literal["encoder", "model"] = "encoder"
    """The encoder alone, or the whole model (autoencoder or classifier); a `.pt2` is always the whole classifier."""
    weights: Literal["last", "best"] = "last"
    """Of a run: the last weights, or those that were best on held-out clips."""
    tracking: TrackingPlace = field(default_factory=TrackingPlace)
    """Where the registry is; asked for `init=models:/...` only."""

    def __post_init__(self) -> None:
        if not self.output.endswith((".safetensors", PROGRAM)):
            raise ValueError(f"output={self.output}: must end in .safetensors or {PROGRAM}; give the file's whole name")


@dataclass(frozen=True)
class Exported:
    """Tensors by name and what the file says of itself."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def run(config: ExportConfig) -> dict[str, Any]:
    """Read, keep the wanted part, write.

    Raises:
        UserError: ``init`` holds no such weights.
    """
    found = _from_anywhere(config)
    if config.output.endswith(PROGRAM):
        return _write_program(config, found)
    tensors = dict(found.tensors)
    if config.part == ENCODER:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{ENCODER}.")}
    metadata = {**found.metadata, "part": config.part}
    data = safetensors.torch.save(tensors, metadata)
    write_bytes(config.output, data)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return {
        "file": config.output,
        "part": config.part,
        "step": metadata.get("step", "last"),
        "parameters": parameters,
        "megabytes": len(data) / 1e6,
        **_made_by(metadata),
    }


def _write_program(config: ExportConfig, found: Exported) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        weights, program = Path(folder) / WEIGHTS, Path(folder) / "program.pt2"
        safetensors.torch.save_file(dict(found.tensors), weights, dict(found.metadata))
        model = load_model(weights)
        if not isinstance(model, Hiera) or len(model.config.input_size) != 3:
            raise UserError(
                f"init={config.init}: is no video classifier; a {PROGRAM} is made of one: fine-tune it first"
            )
        difference = export_program(model, program, found.metadata)
        write_bytes(config.output, program.read_bytes())
        return {
            "file": config.output,
            "part": "classifier from frames to scores",
            "megabytes": program.stat().st_size / 1e6,
            "largest difference from the model": difference,
            **_made_by(found.metadata),
        }


def _made_by(metadata: Mapping[str, str]) -> dict[str, str]:
    """The MLflow run that the weights are of, where they say it; a registered model's is the one registered."""
    run_id = metadata.get("run_id") or metadata.get(f"finetune{RUN_LINK}") or metadata.get(f"pretrain{RUN_LINK}")
    return {"run_id": run_id} if run_id else {}


def _from_anywhere(config: ExportConfig) -> Exported:
    if is_registered(config.init):
        with initial_file(config.init, TrackingConfig(config.tracking.uri), None) as file:
            return _from_file(file)
    checkpoint = re.fullmatch(r"(.+)/checkpoints/step-(\d+)/?", config.init)
    if checkpoint:
        return _from_checkpoint(config.init, checkpoint[1], read_checkpoint(checkpoint[1], int(checkpoint[2])))
    if config.init.endswith(".safetensors"):
        return _from_file(config.init)
    name = WEIGHTS if config.weights == "last" else BEST_WEIGHTS
    if exists(join(config.init, name)):
        return _with_recipe(_from_file(join(config.init, name)), config.init)
    return _from_checkpoint(config.init, config.init, _checkpoint(config))


def _checkpoint(config: ExportConfig) -> Checkpoint | None:
    """The wanted checkpoint of a run that is not at its end."""
    if config.weights == "last":
        return latest_checkpoint(config.init)
    best = best_checkpoint(config.init)
    if best is None:
        raise UserError(
            f"weights=best: no checkpoint of {config.init} was measured on held-out clips; use weights=last"
        )
    return best


def _from_file(uri: str) -> Exported:
    with local_weights(uri) as path:
        try:
            metadata = read_metadata(path)
            if "config" not in metadata:
                raise ValueError(f"{uri}: carries no configuration of this project")
            return Exported(safetensors.torch.load_file(path), metadata)
        except ValueError as error:
            raise UserError(f"init={uri}: {error}; give the output of a run, or what `save_model` wrote") from error


def _from_checkpoint(init: str, output: str, checkpoint: Checkpoint | None) -> Exported:
    if checkpoint is None:
        steps = complete_steps(output)
        raise UserError(
            f"init={init}: is no checkpoint; {output} has those of the steps {', '.join(map(str, steps))}"
            if steps
            else f"init={init}: holds neither weights nor a complete checkpoint; give the output of a training run"
        )
    recipe = _recipe(output)
    model = build_model(_architecture(recipe, checkpoint.weights))
    model.load_state_dict(dict(checkpoint.weights))
    claim = json.loads(read_bytes(join(output, "run.json")))
    facts = {
        "command": str(claim["pins"].get("command", "")),
        "run_key": str(claim["run_key"]),
        "run_id": str(checkpoint.extra.get("mlflow_run_id") or ""),
        "step": str(checkpoint.step),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        save_model(path, model, facts)
        return _with_recipe(Exported(safetensors.torch.load_file(path), read_metadata(path)), output)


def _with_recipe(found: Exported, output: str) -> Exported:
    return Exported(found.tensors, {**found.metadata, "recipe": yaml.safe_dump(_recipe(output), sort_keys=False)})


def _recipe(output: str) -> dict[str, Any]:
    """The run's resolved configuration."""
    try:
        recipe: dict[str, Any] = yaml.safe_load(read_bytes(join(output, "config.yaml")))
    except StorageError as error:
        raise UserError(f"init={output}: {error}; give the output of a training run") from error
    return recipe


def _architecture(recipe: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    if "head.weight" in weights:
        overrides = {key: value for key, value in recipe[OVERRIDES].items() if key != "num_classes"}
        return architecture(recipe["model"], overrides, num_classes=weights["head.weight"].shape[0])
    return architecture(recipe["model"], recipe[OVERRIDES], mask_ratio=recipe["mask_ratio"])


def main() -> None:
    """Entry point of ``python -m jobs.export``."""
    run_command("export", ExportConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
