"""A classifier as a folder for a model hub: weights, configuration, preprocessing and a model card.

model.safetensors           all that `init=FOLDER` reads: the other files are for people and other programs
config.json                 model config and labels
preprocessor_config.json    what a view is, by Hugging Face's names
README.md                   model card: license, figures of the run, labels
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import yaml
from markupsafe import Markup
from torch import Tensor

from hiera_video.models.config import HieraConfig
from jobs.core.errors import UserError
from jobs.core.holdings import holding
from jobs.core.init_source import HUB_CONFIG, LICENSE, WEIGHTS
from jobs.reports.html import render
from jobs.weights.preprocessing import hub_preprocessing, preprocessing
from pipeline.storage.files import join, write_bytes

CARD_FIGURES = ("validation_top1", "validation_loss", "final_loss")
"""Of a run's report."""
KEPT_BACK = ("recipe",)
"""Entries of the weights' metadata that a stranger has no use for: paths, buckets and servers of the run."""


@dataclass(frozen=True)
class HubModel:
    """What goes into the folder."""

    config: HieraConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    """Of the weights file, without secrets."""
    classes: tuple[str, ...]
    sampling: Mapping[str, Any]
    """How frames were chosen in training, as far as known."""
    report: Mapping[str, Any]
    """Of the run; empty where there is none."""


def write_hub_folder(output: str, model: HubModel) -> int:
    """Write the folder, the weights last: one that was not finished cannot be loaded; returns the weights' bytes.

    Raises:
        UserError: ``output`` holds a run or a prepared set.
    """
    if (found := holding(output)).startswith("holds a "):
        raise UserError(f"output={output}: {found}, whose files would be replaced; choose another folder")
    for name, content in _descriptions(model).items():
        write_bytes(join(output, name), content)
    metadata = {key: text for key, text in model.metadata.items() if key not in KEPT_BACK}
    weights = safetensors.torch.save(dict(model.tensors), metadata | {"part": "model"})
    write_bytes(join(output, WEIGHTS), weights)
    return len(weights)


def _descriptions(model: HubModel) -> dict[str, bytes]:
    return {
        HUB_CONFIG: _json(_config(model)),
        "preprocessor_config.json": _json(hub_preprocessing(model.config, model.sampling)),
        "README.md": _card(model),
    }


def _config(model: HubModel) -> dict[str, Any]:
    return {
        "model_type": "hiera_video",
        "architectures": ["Hiera"],
        **dataclasses.asdict(model.config),
        "id2label": dict(enumerate(model.classes)),
        "label2id": {name: number for number, name in enumerate(model.classes)},
    }


def _card(model: HubModel) -> bytes:
    derived = LICENSE in model.metadata
    facts = {
        **({"license": model.metadata[LICENSE].lower()} if derived else {}),
        "pipeline_tag": "video-classification" if model.config.is_video else "image-classification",
        "tags": ["hiera"],
    }
    numbers = {name: model.report.get(name) for name in CARD_FIGURES}
    return render(
        "model_card.md",
        front_matter=Markup(yaml.safe_dump(facts)),  # of fixed words
        preprocessing=preprocessing(model.config, model.sampling),
        parameters=sum(tensor.numel() for tensor in model.tensors.values()),
        derived=derived,
        metrics={name: value for name, value in numbers.items() if isinstance(value, int | float)},
        classes=model.classes,
    )


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode()
