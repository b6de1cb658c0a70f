"""A classifier as a model of MLflow's registry: weights, code, signature and requirements, without a pickle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

import hiera_video
import pipeline
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.init_source import SAMPLING, WEIGHTS
from jobs.scoring.classifier import Classifier, ClassifierWeights

# What the stored code imports, of the two packages only what scores a video: no Ray, which would add 2 s to every start
# of a server and 240 MB to its image. Versions are those of this environment.
REQUIREMENTS = (
    "mlflow", "torch", "numpy", "safetensors", "av", "opencv-python-headless", "pillow", "pyarrow", "boto3", "tenacity",
)  # fmt: skip
CODE = (Path(hiera_video.__file__).parent, Path(pipeline.__file__).parent)
SCRIPT = Path(__file__).parents[1] / "weights" / "pyfunc_model.py"


def signature(weights: ClassifierWeights) -> ModelSignature:
    """uint8 ``[-1, T, H, W, 3]``, or ``[-1, H, W, 3]`` of images, in, a float column per class name out."""
    frames = Schema([TensorSpec(np.dtype(np.uint8), (-1, *weights.encoder.input_size, 3))])
    return ModelSignature(frames, Schema([ColSpec(DataType.float, name) for name in weights.classes]))


def create_version(
    weights: ClassifierWeights,
    *,
    name: str,
    uri: str,
    run_id: str,
    windows: Mapping[str, float],
    alias: str | None,
) -> str:
    """Store the model under a run, and create a version of the registered model ``name``; returns the version.

    Args:
        uri: tracking server and registry.
        windows: length and hop of a video's windows in seconds.
        alias: moved to the new version.
    """  # fmt: skip
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    facts = {"classes": json.dumps(weights.classes), SAMPLING: json.dumps(weights.sampling), **weights.links}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS
        save_model(file, Classifier(weights.uri, "fp32", False, weights.model_config).model, facts)
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(SCRIPT),
                artifacts={"weights": str(file)},
                code_paths=[str(package) for package in CODE],
                signature=signature(weights),
                pip_requirements=requirements(REQUIREMENTS),
                model_config=dict(windows),
                metadata={"classes": list(weights.classes), "weights_digest": weights.digest, **weights.links},
                registered_model_name=name,
            )
    version = str(logged.registered_model_version)
    if alias:
        MlflowClient().set_registered_model_alias(name, alias, version)
    return version


def requirements(packages: Sequence[str]) -> list[str]:
    """Pinned to the installed versions, without a local build's suffix (`+cpu`), which no package index has."""
    installed = {package: _version(package) for package in packages}
    return [f"{package}=={version}" for package, version in installed.items() if version]


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:  # vendored, or built without metadata
        return ""
