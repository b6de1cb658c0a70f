"""Write a run's encoder, or its whole model, as one safetensors file that carries its resolved configuration; or a
classifier as a program that needs neither this project nor the model's code, or as a folder for a model hub.

Usage: ``python -m jobs.export init=RUN_OUTPUT output=encoder.safetensors [part=model] [weights=best]``
       ``python -m jobs.export init=FINETUNE_OUTPUT output=classifier.pt2`` or ``output=classifier.onnx``
       ``python -m jobs.export init=FINETUNE_OUTPUT output=FOLDER format=hub``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import safetensors.torch

from jobs.checkpoints.recorded_run import read_report
from jobs.checkpoints.stored_weights import StoredWeights, Which, classifier_of, stored_weights
from jobs.core.cli import Command
from jobs.core.init_source import ENCODER, RUN_LINK, SAMPLING, class_names, json_entry
from jobs.core.redaction import without_secrets
from jobs.runs.tracking import TrackingTarget
from jobs.runs.tracking_config import TrackingConfig
from jobs.weights.hub_folder import HubModel, write_hub_folder
from jobs.weights.preprocessing import described
from jobs.weights.programs import PROGRAMS, refuse_what_cannot_be_written, write_program
from pipeline.storage.files import write_bytes

DESCRIPTION = (
    "Write a run's encoder, or its whole model, as safetensors with the resolved configuration; a classifier as a "
    "torch.export program (`output=....pt2`) or an ONNX file (`output=....onnx`) from uint8 frames [B, T, H, W, 3], or "
    "images [B, H, W, 3], to scores [B, classes], checked against the model; or as a folder for a model hub."
)
FILES = (".safetensors", *PROGRAMS)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and where to."""

    init: str
    """Output of a training run, finished or not; one of its checkpoints (`.../checkpoints/step-N`); a `.safetensors`
    file of this project; or a model of the MLflow registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`)."""
    output: str
    """File to write: path, file:// or s3://, that ends in `.safetensors`, `.pt2` (torch.export) or `.onnx`. With
    format=hub a folder."""
    format: Literal["file", "hub"] = "file"
    """A file, whose ending decides, or a folder for a model hub: weights, configuration, preprocessing, model card."""
    part: Literal["encoder", "model"] = "encoder"
    """Of `.safetensors`: the encoder alone, or the whole model (autoencoder or classifier)."""
    weights: Which = "last"
    """Of a run: the last weights, or those that were best in validation."""
    tracking: TrackingTarget = field(default_factory=TrackingTarget)

    def __post_init__(self) -> None:
        if self.format == "file" and not self.output.endswith(FILES):
            raise ValueError(f"output={self.output}: must end in {', '.join(FILES)}; add one, or format=hub")
        if self.format == "hub" and self.output.endswith(FILES):
            raise ValueError(f"output={self.output}: must be a folder with format=hub; leave its ending out")


def run(config: ExportConfig) -> dict[str, Any]:
    """Read, keep the wanted part, write.

    Raises:
        UserError: ``init`` holds no such weights, or a package for ONNX is not installed.
    """
    refuse_what_cannot_be_written(config.output)
    found = stored_weights(config.init, config.weights, TrackingConfig(config.tracking.uri))
    # A run of an older release may hold a password in its configuration.
    metadata = {name: without_secrets(text) for name, text in found.metadata.items()}
    if config.format == "hub" or config.output.endswith(tuple(PROGRAMS)):
        report = _write_classifier(config, StoredWeights(found.tensors, metadata))
    else:
        report = _write_tensors(config, StoredWeights(found.tensors, metadata | {"part": config.part}))
    run_id = metadata.get("run_id") or metadata.get(f"finetune{RUN_LINK}") or metadata.get(f"pretrain{RUN_LINK}")
    return report | ({"run_id": run_id} if run_id else {})  # of a registered model, the run that was registered


def _write_tensors(config: ExportConfig, found: StoredWeights) -> dict[str, Any]:
    kept = "" if config.part == "model" else f"{ENCODER}."
    tensors = {name: tensor for name, tensor in found.tensors.items() if name.startswith(kept)}
    data = safetensors.torch.save(tensors, dict(found.metadata))
    write_bytes(config.output, data)
    return {
        "file": config.output,
        "part": config.part,
        "step": found.metadata.get("step", "last"),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "megabytes": len(data) / 1e6,
    }


def _write_classifier(config: ExportConfig, found: StoredWeights) -> dict[str, Any]:
    init, model = config.init, classifier_of(config.init, found)
    sampling = json_entry(init, found.metadata, SAMPLING, dict)
    if config.format == "hub":
        names = class_names(init, found.metadata) or tuple(f"class {n}" for n in range(model.config.num_classes))
        figures = read_report(init) if config.weights == "last" else {}  # which are of the last weights
        hub = HubModel(model.config, found.tensors, found.metadata, names, sampling, figures)
        return {"folder": config.output, "classes": len(names), "megabytes": write_hub_folder(config.output, hub) / 1e6}
    return write_program(config.output, model, described(found.metadata, model.config, sampling))


main = Command("export", ExportConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
