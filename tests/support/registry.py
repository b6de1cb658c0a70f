"""An MLflow registry with a classifier, laid out as `jobs.register` does."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mlflow import MlflowClient

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.runs.mlflow_store import tracking_client_for

CLASSES = ("left", "right")
NAME = "models:/motion"


def motion_registry(folder: Path) -> MlflowClient:
    """Versions 1 and 2 of `motion`, and `other`, which `jobs.register` has not made."""
    client = tracking_client_for(f"sqlite:///{folder / 'mlflow.db'}")
    facts = {"classes": json.dumps(CLASSES), "pretrain_run_id": "p1", "finetune_run_id": "f1"}
    for name in ("motion", "other"):
        client.create_registered_model(name)
    for version in (1, 2):
        torch.manual_seed(version)
        (folder / str(version) / "artifacts").mkdir(parents=True)
        file = folder / str(version) / "artifacts" / "model.safetensors"
        save_model(file, create_model("hiera_test_8x64", num_classes=2), facts)
        client.create_model_version("motion", (folder / str(version)).as_uri())
    (folder / "pickled").mkdir()
    (folder / "pickled" / "python_model.pkl").write_text("no weights")
    client.create_model_version("other", (folder / "pickled").as_uri())
    return client


def stored(tracking_uri: str | None, version: int) -> bytes:
    """The weights file of a version of `motion`."""
    folder = Path(str(tracking_uri).removeprefix("sqlite:///")).parent
    return (folder / str(version) / "artifacts" / "model.safetensors").read_bytes()
