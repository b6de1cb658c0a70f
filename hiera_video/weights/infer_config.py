"""The model config of public weights, which carry none: inferred from the tensors' shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hiera_video.models.config import HieraConfig
from hiera_video.models.presets import build_model, model_config, model_names
from hiera_video.weights.checkpoint_files import StateDict, read_weights


def recognize_classifier(path: str | Path, model: str | None = None, **overrides: Any) -> HieraConfig:
    """The model config of a classifier's weights; executes no code from the file.

    Args:
        model: its preset, when it is known; otherwise the one whose shapes the file has.
        overrides: how the model config differs from the preset's, for instance `input_size`.

    Raises:
        ValueError: a missing, damaged or foreign file, weights without a head or of no preset's shapes.
    """
    tensors = read_weights(path).tensors
    if "head.weight" not in tensors or tensors["head.weight"].dim() != 2:
        raise ValueError(f"{path}: holds no classification head (pretrained weights have none); fine-tune them first")
    classifiers = [name for name in model_names() if not name.startswith("mae_")]
    names = classifiers if model is None else [model]
    configs = [_classifier_config(name, {"num_classes": len(tensors["head.weight"]), **overrides}) for name in names]
    kernel = tensors.get("encoder.patch_embed.weight")
    width = len(kernel) if kernel is not None and kernel.dim() else 0  # spares building every preset
    fitting = [config for config in configs if config.embed_dim == width and _fits(config, tensors)]
    if len(fitting) != 1:
        tried = model or "a preset"
        found = f"{len(fitting)} presets have" if fitting else f"{tried} with these options does not have"
        raise ValueError(
            f"{path}: {found} the shapes of these weights; name the preset by model= and what differs from it by "
            f"model_overrides= (known: {', '.join(classifiers)})"
        )
    return fitting[0]


def _classifier_config(name: str, overrides: dict[str, Any]) -> HieraConfig:
    if name.startswith("mae_"):
        raise ValueError(f"model={name}: must be a classifier; did you mean {name.removeprefix('mae_')}?")
    config = model_config(name, **overrides)
    assert isinstance(config, HieraConfig)
    return config


def _fits(config: HieraConfig, tensors: StateDict) -> bool:
    """Whether a model with this config has parameters of these names and shapes."""
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    shapes, found = ({name: value.shape for name, value in state.items()} for state in (expected, tensors))
    return shapes == found
