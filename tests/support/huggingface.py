"""Weights under Hugging Face's names, as its own models have them, and from there into ours by way of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from hiera_video.models.hiera import Hiera
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.weights.checkpoint_files import load_weights
from hiera_video.weights.key_mapping import HUGGINGFACE, HUGGINGFACE_NORMS, renamed, replaced

Architecture = Literal["HieraModel", "HieraForImageClassification", "HieraForPreTraining"]


def load_huggingface(model: Hiera | MaskedAutoencoder, state: Mapping[str, Tensor]) -> None:
    """Fill an image model from the weights of a Hugging Face class, as a user would: from a file."""
    with TemporaryDirectory() as folder:
        torch.save(dict(state), Path(folder) / "theirs.pth")
        load_weights(model, Path(folder) / "theirs.pth")


def huggingface_state_dict(
    model: Hiera | MaskedAutoencoder, architecture: Architecture | None = None
) -> dict[str, Tensor]:
    """The weights of an image model under Hugging Face's names, by default for the class of the same kind."""
    own = "HieraForImageClassification" if isinstance(model, Hiera) else "HieraForPreTraining"
    named = {
        _in_stages(replaced(renamed(name, HUGGINGFACE), HUGGINGFACE_NORMS), model.config.stages): tensor
        for name, tensor in model.state_dict().items()
    }
    if (architecture or own) == "HieraModel":
        return {name.removeprefix("hiera."): tensor for name, tensor in named.items() if name.startswith("hiera.")}
    return named


def _in_stages(name: str, stages: Sequence[int]) -> str:
    """Hugging Face counts blocks within each stage."""
    match = re.fullmatch(r"hiera\.encoder\.blocks\.(\d+)\.(.*)", name)
    if match is None:
        return name
    stage, block = 0, int(match[1])
    while block >= stages[stage]:
        block -= stages[stage]
        stage += 1
    return f"hiera.encoder.stages.{stage}.layers.{block}.{match[2]}"
