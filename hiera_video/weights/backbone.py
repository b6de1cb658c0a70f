"""The encoder of a weights file as a feature backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hiera_video.models.config import EncoderConfig, HieraConfig
from hiera_video.models.hiera import Hiera, HieraEncoder
from hiera_video.weights.checkpoint_files import fill_classifier, read_weights, refuse_other_shapes


def load_backbone(path: str | Path, **overrides: Any) -> HieraEncoder:
    """The encoder of any weights file of this package, in evaluation mode: its forward gives the four stages' maps.

    Every stage entry pools, as in fine-tuning and inference (paper §A), also where pretraining pooled less.

    Args:
        overrides: changes to the model config, for instance `input_size`; position tables are interpolated.

    Raises:
        ValueError: a missing or damaged file, one without a model config, or weights that do not fit.
    """
    weights = read_weights(path)
    if weights.config is None:
        raise ValueError(f"{path}: contains no model config; use create_model and load_into_classifier")
    shared = {field.name: getattr(weights.config, field.name) for field in dataclasses.fields(EncoderConfig)}
    config = HieraConfig(**{**shared, "q_pool": len(weights.config.stages) - 1})
    refuse_other_shapes(config, weights.tensors, str(path), prefix="encoder.")
    model = Hiera(dataclasses.replace(config, **overrides))
    fill_classifier(model, weights, str(path))
    return model.encoder.eval()
