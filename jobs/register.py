"""Put a classifier into the MLflow model registry, as a model that needs neither this project nor a pickle to load.

Usage: ``python -m jobs.register init=FINETUNE_OUTPUT name=NAME [alias=champion]``
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

import hiera_video
import pipeline
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.cli import run_command
from jobs.core.errors import UserError, first_line
from jobs.core.init_source import SAMPLING, WEIGHT_FILES, WEIGHTS, is_registered
from jobs.runs.mlflow_sender import FAILURES
from jobs.runs.tracking import URI_REQUIRED, TrackingConfig, recorded, start_run, tracking_uri
from jobs.scoring.classifier import Classifier, ClassifierWeights, PublicWeightsConfig, find_classifier
from pipeline.storage.files import absolute

DESCRIPTION = (
    "Put a classifier into the MLflow model registry. What `mlflow.pyfunc.load_model` loads takes uint8 frames by "
    "`predict(frames)`, and the path of a video by `unwrap_python_model().predict(None, 'video.mp4')`."
)
# What the stored code imports, of the two packages only what scores a video: no Ray, which would add 2 s to every start
# of a server and 240 MB to its image. Versions are those of this environment.
REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors", "av", "decord", "opencv-python-headless", "pyarrow", "boto3")
CODE = (Path(hiera_video.__file__).parent, Path(pipeline.__file__).parent)
SCRIPT = Path(__file__).with_name("weights") / "pyfunc_model.py"
# As MLflow checks them, but before the version exists.
ALIAS = re.compile(r"[\w-]{1,255}")
RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
MLFLOW_WAIT_SECONDS = 60.0
REQUEST_SECONDS = "120"  # weights of a GiB and more are one request


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(PublicWeightsConfig):
    """Which classifier to register, and as what."""

    init: str
    """Classifier: the output of a fine-tuning run, its `.safetensors` file, or an official or Hugging Face file."""
    name: str
    """Name in the registry; each time it is used makes a new version of it."""
    alias: str | None = None
    """Alias that shall point to the new version, for `models:/NAME@ALIAS`."""
    window_seconds: float = 2.0
    """Length of a window of a video, as in `jobs.tag`."""
    hop_seconds: float = 2.0
    """From the start of one window to the start of the next."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the registry is, and the run that the version belongs to. Default: `mlflow.db` beside `init`."""

    def __post_init__(self) -> None:
        if is_registered(self.init):
            raise ValueError(
                f"init={self.init}: is in the registry already; give what it was made of, or an alias by "
                "MlflowClient().set_registered_model_alias"
            )
        if self.alias is not None and not (ALIAS.fullmatch(self.alias) and not RESERVED_ALIAS.fullmatch(self.alias)):
            raise ValueError(
                f"alias={self.alias}: must consist of letters, digits, - and _, and be neither `latest` nor like `v1`, "
                "which MLflow keeps for itself; use champion"
            )
        for key in ("window_seconds", "hop_seconds"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; give a larger value")


def run(config: RegisterConfig) -> dict[str, Any]:
    """Store weights, code and signature, and make them a version in the registry.

    Raises:
        UserError: ``init`` holds no classifier, or MLflow does not answer or refuses the name.
    """
    public = PublicWeightsConfig(model=config.model, model_overrides=config.model_overrides, classes=config.classes)
    weights = find_classifier(config.init, public)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    place = _run_output(config.init)
    uri = tracking_uri(config.tracking, place)
    if uri is None:
        raise UserError(URI_REQUIRED)
    tracking = start_run(
        config.tracking, command="register", run_key=uuid.uuid4().hex, output=place, tags=weights.links,
        params={"init": weights.uri, "name": config.name, "alias": config.alias},
    )  # fmt: skip
    with recorded(tracking):
        run_id = tracking.wait_for_id(MLFLOW_WAIT_SECONDS)
        if run_id is None:
            raise UserError(f"tracking.uri={uri}: does not answer; start the server and run the same command again")
        try:
            version = _register(config, weights, uri, run_id)
        except FAILURES as error:
            raise UserError(f"name={config.name}: MLflow refuses it: {first_line(error)}") from error
    tracking.finish()
    shown = f"@{config.alias}" if config.alias else f"/{version}"
    return {
        "uri": f"models:/{config.name}{shown}",
        "version": version,
        "classes": len(weights.classes),
        "run_id": run_id,
    }


def signature(weights: ClassifierWeights) -> ModelSignature:
    """uint8 ``[-1, T, H, W, 3]`` in, a float column per class name out."""
    frames = Schema([TensorSpec(np.dtype(np.uint8), (-1, *weights.input_size, 3))])
    return ModelSignature(frames, Schema([ColSpec(DataType.float, name) for name in weights.classes]))


def _register(config: RegisterConfig, weights: ClassifierWeights, uri: str, run_id: str) -> str:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    facts = {"classes": json.dumps(weights.classes), SAMPLING: json.dumps(weights.sampling), **weights.links}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS
        save_model(file, Classifier(weights.uri, "fp32", False, weights.architecture).model, facts)
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(SCRIPT),
                artifacts={"weights": str(file)},
                code_paths=[str(package) for package in CODE],
                signature=signature(weights),
                pip_requirements=requirements(),
                model_config={"window_seconds": config.window_seconds, "hop_seconds": config.hop_seconds},
                metadata={"classes": list(weights.classes), "weights_digest": weights.digest, **weights.links},
                registered_model_name=config.name,
            )
    version = str(logged.registered_model_version)
    if config.alias:
        MlflowClient().set_registered_model_alias(config.name, config.alias, version)
    return version


def requirements() -> list[str]:
    """Pinned to what is installed here; a local build's suffix (`+cpu`) is in no registry."""
    installed: Mapping[str, str] = {package: _version(package) for package in REQUIREMENTS}
    return [f"{package}=={version}" for package, version in installed.items() if version]


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:  # decord, where there are no wheels of it
        return ""


def _run_output(init: str) -> str:
    """The output of the run that ``init`` is or lies in."""
    place = absolute(init)
    return place.rpartition("/")[0] if place.endswith(WEIGHT_FILES) else place


def main() -> None:
    """Entry point."""
    run_command("register", RegisterConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
