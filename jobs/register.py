"""Put a classifier into the MLflow model registry, as a model that needs neither this project nor a pickle to load.

Usage: ``python -m jobs.register init=FINETUNE_OUTPUT name=NAME [alias=champion]``
"""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from jobs.core.cli import Command
from jobs.core.errors import UserError
from jobs.core.holdings import is_registered
from jobs.core.init_source import WEIGHT_FILES
from jobs.runs.mlflow_limits import FAILURES
from jobs.runs.tracking import URI_REQUIRED, recorded, start_run, tracking_uri
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import PublicWeightsConfig, find_classifier
from jobs.scoring.registered_model import create_version
from pipeline.storage.errors import first_line
from pipeline.storage.files import absolute

DESCRIPTION = (
    "Put a classifier into the MLflow model registry. What `mlflow.pyfunc.load_model` loads takes uint8 frames by "
    "`predict(frames)`, and the path of a video by `unwrap_python_model().predict(None, 'video.mp4')`."
)
# MLflow checks them too, but only after it has created the version.
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
    """Name of the registered model, of which each call creates a new version."""
    alias: str | None = None
    """Alias to move to the new version, for `models:/NAME@ALIAS`."""
    window_seconds: float = 2.0
    """Length of a window of a video, as in `jobs.tag`."""
    hop_seconds: float = 2.0
    """From the start of one window to the start of the next."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if is_registered(self.init):
            raise ValueError(
                f"init={self.init}: must not be in the registry already; give its weights file, or set an alias with "
                "MlflowClient().set_registered_model_alias"
            )
        if self.alias is not None and not (ALIAS.fullmatch(self.alias) and not RESERVED_ALIAS.fullmatch(self.alias)):
            raise ValueError(
                f"alias={self.alias}: must consist of letters, digits, - and _, and not be `latest` or like `v1`, "
                "which MLflow reserves; use champion"
            )
        for key in ("window_seconds", "hop_seconds"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; use 2")


def run(config: RegisterConfig) -> dict[str, Any]:
    """Store weights, code and signature as a new version in the registry.

    Raises:
        UserError: ``init`` holds no classifier, or MLflow does not respond or refuses the name.
    """
    public = PublicWeightsConfig(model=config.model, model_overrides=config.model_overrides, classes=config.classes)
    weights = find_classifier(config.init, public)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    output = _run_output(config.init)
    uri = tracking_uri(config.tracking, output)
    if uri is None:
        raise UserError(URI_REQUIRED)
    tracking = start_run(
        config.tracking, command="register", run_key=uuid.uuid4().hex, output=output, tags=weights.links,
        params={"init": weights.uri, "name": config.name, "alias": config.alias},
    )  # fmt: skip
    with recorded(tracking):
        run_id = tracking.wait_for_id(MLFLOW_WAIT_SECONDS)
        if run_id is None:
            raise UserError(f"tracking.uri={uri}: the server must respond; start it and run the same command again")
        try:
            version = create_version(
                weights, name=config.name, uri=uri, run_id=run_id, alias=config.alias,
                windows={"window_seconds": config.window_seconds, "hop_seconds": config.hop_seconds},
            )  # fmt: skip
        except FAILURES as error:
            raise UserError(
                f"name={config.name}: MLflow refuses it: {first_line(error)}; change what it names"
            ) from error
    tracking.finish()
    shown = f"@{config.alias}" if config.alias else f"/{version}"
    return {
        "uri": f"models:/{config.name}{shown}",
        "version": version,
        "classes": len(weights.classes),
        "run_id": run_id,
    }


def _run_output(init: str) -> str:
    """The output of the run that ``init`` is, or is a file of."""
    uri = absolute(init)
    return uri.rpartition("/")[0] if uri.endswith(WEIGHT_FILES) else uri


main = Command("register", RegisterConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
