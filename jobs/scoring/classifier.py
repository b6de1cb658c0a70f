"""A trained classifier as the scoring commands use it: found in storage, described, then loaded in actors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from hiera_video.inference import embed_frames
from hiera_video.models.config import HieraConfig, ModelConfig
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import build_model
from hiera_video.weights.checkpoint_files import load_model, load_weights, stored_config
from hiera_video.weights.infer_config import recognize_classifier
from jobs.core.errors import UserError
from jobs.core.holdings import is_registered
from jobs.core.init_source import (
    DIGEST_CHARACTERS,
    ENCODER,
    SAMPLING,
    SHIPPED_CLASSES,
    absolute_init,
    class_names,
    initial_metadata,
    json_entry,
    links_of,
    local_weights,
)
from jobs.weights.kept_copy import keep_under
from jobs.weights.model_config import typed_overrides
from pipeline.manifest.formats import read_class_list
from pipeline.media import Media
from pipeline.storage.files import absolute

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NOT_CLASSIFIERS = {"MaskedAutoencoderConfig": "a masked autoencoder, as `pretrain` makes it"}
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClassifierWeights:
    """Where a classifier's weights are, and their metadata."""

    uri: str
    """The value of `init`, absolute."""
    file: str
    """URI of the file: ``uri`` except for a model of the registry, which only the driver can resolve."""
    digest: str
    """First characters of the file's SHA-256."""
    encoder: HieraConfig
    """Model config: what a view is, and how its pixels are normalised."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    links: Mapping[str, str]
    """MLflow runs that made them: `pretrain_run_id`, `finetune_run_id`, as far as known."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How frames were chosen in training (`sampling`, `frame_stride`), as far as the metadata has it."""
    model_config: HieraConfig | None = None
    """Model config of public weights, whose files have none; None for weights of this project."""
    has_class_names: bool = True
    """Whether the names are known; otherwise they are `class 0`, `class 1`, ..."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Frames, height and width of a view; an image has one frame."""
        *frames, height, width = self.encoder.input_size
        return (frames[0] if frames else 1, height, width)

    @property
    def media(self) -> Media:
        """What it classifies."""
        return "video" if self.encoder.is_video else "image"


@dataclass(frozen=True, kw_only=True)
class PublicWeightsConfig:
    """Metadata that public weights lack; weights of this project need none of it."""

    model: str | None = None
    """Preset of public weights (`.pth`, Hugging Face). Default: the preset whose shapes they have."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """How their model config differs from the preset: `input_size`, `embed_dim`, ..."""
    classes: str | None = None
    """Their class list: a shipped one's name, or a text file (a name a line) or JSON list. Default: `kinetics400` for
    400 classes, else unnamed."""

    def given(self) -> str:
        """The keys that are set, as they were written: `model=hiera_base_16x224 classes=names.txt`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(PublicWeightsConfig)}
        return " ".join(f"{key}={value}" for key, value in values.items() if value)


def find_classifier(
    init: str, public: PublicWeightsConfig | None = None, *, fetched: str | None = None
) -> ClassifierWeights:
    """Describe the weights of ``init``: the output of a fine-tuning run, its `.safetensors`, or a public file.

    Args:
        fetched: local copy of the file that ``init`` names (`initial_file`).

    Raises:
        UserError: the file does not exist, or holds no classifier.
        ManifestError: ``public.classes`` is no class list.
    """
    public = public or PublicWeightsConfig()
    file = fetched or init
    metadata = initial_metadata(file)
    with local_weights(file) as path:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:DIGEST_CHARACTERS]
        if "config_class" not in metadata:
            return _public_classifier(init, file, str(path), digest, public)
        model_config = _own_config(init, path, metadata)
    if not isinstance(model_config, HieraConfig):
        raise UserError(
            f"init={init}: holds {NOT_CLASSIFIERS.get(metadata['config_class'], 'another model')}, not a classifier; "
            f"fine-tune it first: `python -m jobs.finetune init={init} ...`"
        )
    if metadata.get("part") == ENCODER:
        raise UserError(
            f"init={init}: contains the encoder of a classifier without its head; fine-tune from it, or give an export "
            "with part=model"
        )
    if given := public.given():
        raise UserError(f"{given}: only for public weights, which init={init} is not; remove it")
    classes = _class_names(init, metadata, model_config.num_classes)
    return ClassifierWeights(
        absolute_init(init), absolute(file), digest, model_config, classes, links_of(metadata),
        json_entry(init, metadata, SAMPLING, dict),
    )  # fmt: skip


def _own_config(init: str, path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    try:
        return stored_config(path, metadata)
    except ValueError as error:
        raise UserError(f"init={init}: {str(error).replace(str(path), 'the file')}") from error


def shared(weights: ClassifierWeights, output: str) -> ClassifierWeights:
    """The weights, those of the registry as a copy under ``output``, where all workers can read it."""
    if not is_registered(weights.uri):
        return weights
    return dataclasses.replace(weights, file=keep_under(absolute(output), weights.file))


def _public_classifier(init: str, file: str, path: str, digest: str, public: PublicWeightsConfig) -> ClassifierWeights:
    """Official or Hugging Face weights; a pickle is read as tensors only."""
    try:
        overrides = typed_overrides(HieraConfig, public.model_overrides)
        model_config = recognize_classifier(path, public.model, **overrides)
    except ValueError as error:
        raise UserError(f"init={init}: {str(error).replace(path, 'the file')}") from error
    if model_config.input_size[-2] != model_config.input_size[-1]:
        raise UserError(f"model_overrides.input_size={model_config.input_size}: views are square; give one side twice")
    listed = public.classes or SHIPPED_CLASSES.get(model_config.num_classes)
    names = read_class_list(listed) if listed else _unnamed(model_config.num_classes)
    if len(names) != model_config.num_classes:
        raise UserError(
            f"classes={listed}: names {len(names)} classes, init={init} has {model_config.num_classes}; give its "
            "class list"
        )
    return ClassifierWeights(
        absolute_init(init), absolute(file), digest, model_config, names, links_of({}), {}, model_config,
        has_class_names=listed is not None,
    )  # fmt: skip


class Classifier:
    """A classifier loaded in this process."""

    def __init__(self, uri: str, precision: Precision, use_gpu: bool, model_config: HieraConfig | None = None) -> None:
        if not use_gpu:
            # Actors share the machine's cores with decoders: one thread each, and the same sums on every machine.
            torch.set_num_threads(1)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        with local_weights(uri) as path:
            if model_config is None:
                model = load_model(path)
            else:
                model = build_model(model_config)
                load_weights(model, path)
        assert isinstance(model, Hiera)  # checked by `find_classifier`
        self.model = model.to(self.device).eval()
        self._autocast = AUTOCAST[precision]

    @torch.inference_mode()
    def score(self, video: npt.NDArray[np.uint8], *, multi_label: bool = False) -> tuple[Floats, Floats]:
        """Scores ``[B, classes]`` and the features before the head ``[B, D]`` of uint8 frames ``[B, T, H, W, 3]``."""
        frames = torch.from_numpy(np.require(video, np.uint8, ["C", "W"])).to(self.device)
        features = embed_frames(self.model, frames, self._autocast)
        logits = self.model.head(features)
        scores = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        return scores.cpu().numpy(), features.cpu().numpy()


def _unnamed(num_classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(num_classes))


def _class_names(init: str, metadata: Mapping[str, str], num_classes: int) -> tuple[str, ...]:
    names = class_names(init, metadata) if "classes" in metadata else _unnamed(num_classes)
    if len(names) != num_classes:
        raise UserError(
            f"init={init}: names {len(names)} classes for {num_classes} logits; fine-tune again with its class list"
        )
    return names
