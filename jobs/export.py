"""Write a run's encoder, or its whole model, as one safetensors file that carries its resolved configuration, or a
classifier as a `torch.export` program, which needs neither this project nor the model's code.

Usage: ``python -m jobs.export init=RUN_OUTPUT output=encoder.safetensors [part=model] [weights=best]``
       ``python -m jobs.export init=FINETUNE_OUTPUT output=classifier.pt2``
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch

from hiera_video.models.hiera import Hiera
from hiera_video.weights.checkpoint_files import load_model
from jobs.checkpoints.stored_weights import StoredWeights, Which, stored_weights
from jobs.core.cli import Command
from jobs.core.errors import UserError
from jobs.core.init_source import ENCODER, RUN_LINK, WEIGHTS
from jobs.core.redaction import without_secrets
from jobs.runs.tracking import TrackingTarget
from jobs.runs.tracking_config import TrackingConfig
from jobs.weights.torch_export import export_program
from pipeline.storage.files import write_bytes

DESCRIPTION = (
    "Write a run's encoder, or its whole model, as safetensors with the resolved configuration; or a classifier as a "
    "torch.export program (`output=....pt2`) from uint8 frames [B, T, H, W, 3], or images [B, H, W, 3], to scores "
    "[B, classes], checked against the model."
)
PROGRAM = ".pt2"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and where to."""

    init: str
    """Output of a training run, finished or not; one of its checkpoints (`.../checkpoints/step-N`); a `.safetensors`
    file of this project; or a model of the MLflow registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`)."""
    output: str
    """File to write: path, file:// or s3://. It ends in `.safetensors`, or in `.pt2` for a torch.export program."""
    part: Literal["encoder", "model"] = "encoder"
    """The encoder alone, or the whole model (autoencoder or classifier); a `.pt2` is always the whole classifier."""
    weights: Which = "last"
    """Of a run: the last weights, or those that were best in validation."""
    tracking: TrackingTarget = field(default_factory=TrackingTarget)

    def __post_init__(self) -> None:
        if not self.output.endswith((".safetensors", PROGRAM)):
            raise ValueError(f"output={self.output}: must end in .safetensors or {PROGRAM}; add the ending")


def run(config: ExportConfig) -> dict[str, Any]:
    """Read, keep the wanted part, write.

    Raises:
        UserError: ``init`` holds no such weights.
    """
    found = stored_weights(config.init, config.weights, TrackingConfig(config.tracking.uri))
    if config.output.endswith(PROGRAM):
        return _write_program(config, found)
    tensors = dict(found.tensors)
    if config.part == ENCODER:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{ENCODER}.")}
    # A run of an older release may hold a password in its configuration.
    metadata = {name: without_secrets(text) for name, text in found.metadata.items()} | {"part": config.part}
    data = safetensors.torch.save(tensors, metadata)
    write_bytes(config.output, data)
    return {
        "file": config.output,
        "part": config.part,
        "step": metadata.get("step", "last"),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "megabytes": len(data) / 1e6,
        **_run_of(metadata),
    }


def _write_program(config: ExportConfig, found: StoredWeights) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        weights, program = Path(folder) / WEIGHTS, Path(folder) / "program.pt2"
        safetensors.torch.save_file(dict(found.tensors), weights, dict(found.metadata))
        model = load_model(weights)
        if not isinstance(model, Hiera):
            raise UserError(f"init={config.init}: must be a classifier for a {PROGRAM}; fine-tune it first")
        difference = export_program(model, program, found.metadata)
        write_bytes(config.output, program.read_bytes())
        return {
            "file": config.output,
            "part": "classifier from frames to scores",
            "megabytes": program.stat().st_size / 1e6,
            "largest difference from the model": difference,
            **_run_of(found.metadata),
        }


def _run_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """The MLflow run that made the weights, if they name it; for a registered model, the run that was registered."""
    run_id = metadata.get("run_id") or metadata.get(f"finetune{RUN_LINK}") or metadata.get(f"pretrain{RUN_LINK}")
    return {"run_id": run_id} if run_id else {}


main = Command("export", ExportConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
