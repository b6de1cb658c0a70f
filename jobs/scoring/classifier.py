"""A trained classifier as the scoring commands use it: found in storage, described without loading, run in actors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset

from hiera_video.inference import Probabilities
from hiera_video.models.config import HieraConfig
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import build_model
from hiera_video.weights.checkpoint_files import load_model, load_weights
from hiera_video.weights.infer_config import recognize_classifier
from jobs.core.errors import UserError
from jobs.core.init_source import (
    DIGEST_CHARACTERS,
    ENCODER,
    SAMPLING,
    SHIPPED_CLASSES,
    absolute_init,
    initial_metadata,
    is_registered,
    links_of,
    local_weights,
)
from jobs.core.ray_cluster import has_gpus
from jobs.weights.model_config import typed_override
from jobs.weights.registry import keep_under
from pipeline.manifest.formats import read_class_list
from pipeline.manifest.text_columns import ManifestError
from pipeline.storage.files import absolute

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# A video that ends its worker does so twice before it is given up, so one task bears two of them; by default Ray Data
# would repeat a task for ever.
ACTOR_RETRIES = {"max_restarts": 8, "max_task_retries": 4}


@dataclass(frozen=True)
class ClassifierWeights:
    """Where a classifier's weights are and what they say about themselves."""

    uri: str
    """What `init` named, absolute."""
    place: str
    """Where the file is read: ``uri``, but for a model of the registry, which only the driver knows."""
    digest: str
    """First characters of the file's SHA-256."""
    input_size: tuple[int, int, int]
    """Frames, height and width of a view."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    links: Mapping[str, str]
    """MLflow runs that made them: `pretrain_run_id`, `finetune_run_id`, as far as known."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How frames were chosen in training (`sampling`, `frame_stride`), as far as the weights say."""
    architecture: HieraConfig | None = None
    """Of public weights, which do not say it themselves; None for those of this project."""
    has_class_names: bool = True
    """Whether the names are known; otherwise they are `class 0`, `class 1`, ..."""


@dataclass(frozen=True, kw_only=True)
class PublicWeightsConfig:
    """What public weights do not say of themselves; those of this project need none of it."""

    model: str | None = None
    """Preset of public weights (`.pth`, Hugging Face). Default: the preset whose shapes they have."""
    model_overrides: dict[str, Any] = field(default_factory=dict)
    """How their architecture differs from the preset: `input_size`, `embed_dim`, ..."""
    classes: str | None = None
    """Their class list: a shipped one's name, or a text file (a name a line) or JSON list. Default: `kinetics400` for
    400 classes, else unnamed."""


def find_classifier(
    init: str, public: PublicWeightsConfig | None = None, *, fetched: str | None = None
) -> ClassifierWeights:
    """Describe the weights of ``init``: the output of a fine-tuning run, its `.safetensors`, or a public file.

    Args:
        fetched: where `initial_file` has put what ``init`` names.

    Raises:
        UserError: nothing is there, or it is no video classifier.
    """
    public = public or PublicWeightsConfig()
    place = fetched or init
    metadata = initial_metadata(place)
    with local_weights(place) as path:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARACTERS]
        if "config_class" not in metadata:
            return _public_classifier(init, place, str(path), digest, public)
    architecture = json.loads(metadata.get("config", "{}"))
    if metadata["config_class"] != "HieraConfig" or len(architecture["input_size"]) != 3:
        raise UserError(
            f"init={init}: holds {metadata['config_class']}, not a video classifier; "
            "fine-tune it first: `python -m jobs.finetune init=...`"
        )
    if metadata.get("part") == ENCODER:
        raise UserError(
            f"init={init}: holds the encoder of a classifier without its head; fine-tune from it, or give an export "
            "with part=model"
        )
    if public != PublicWeightsConfig():
        raise UserError(f"model, model_overrides, classes: are for public weights; init={init} says its own; drop them")
    frames, height, width = architecture["input_size"]
    classes = _class_names(init, metadata, architecture["num_classes"])
    return ClassifierWeights(
        absolute_init(init), absolute(place), digest, (frames, height, width), classes, links_of(metadata),
        json.loads(metadata.get(SAMPLING, "{}")),
    )  # fmt: skip


def shared(weights: ClassifierWeights, output: str) -> ClassifierWeights:
    """The same, with those of the registry copied under ``output``, where all workers can read them."""
    if not is_registered(weights.uri):
        return weights
    return dataclasses.replace(weights, place=keep_under(absolute(output), weights.place))


def _public_classifier(init: str, place: str, path: str, digest: str, public: PublicWeightsConfig) -> ClassifierWeights:
    """Official or Hugging Face weights; a pickle is read as tensors only."""
    try:
        overrides = {key: typed_override(HieraConfig, key, value) for key, value in public.model_overrides.items()}
        architecture = recognize_classifier(path, public.model, **overrides)
    except ValueError as error:
        raise UserError(f"init={init}: {str(error).replace(path, 'the file')}") from error
    if len(architecture.input_size) != 3:
        raise UserError(f"init={init}: is a classifier of images; give one of videos (`..._16x224`)")
    frames, height, width = architecture.input_size
    if height != width:
        raise UserError(f"model_overrides.input_size={architecture.input_size}: views are square; give one side twice")
    listed = public.classes or SHIPPED_CLASSES.get(architecture.num_classes)
    names = tuple(f"class {number}" for number in range(architecture.num_classes))
    if listed:
        try:
            names = read_class_list(listed)
        except ManifestError as error:
            raise UserError(str(error)) from error
    if len(names) != architecture.num_classes:
        raise UserError(
            f"classes={listed}: names {len(names)} classes, init={init} has {architecture.num_classes}; give its own "
            "class list"
        )
    named, size = listed is not None, (frames, height, width)
    return ClassifierWeights(
        absolute_init(init), absolute(place), digest, size, names, {}, {}, architecture, has_class_names=named
    )


class Classifier:
    """A classifier loaded in this process."""

    def __init__(self, uri: str, precision: Precision, use_gpu: bool, architecture: HieraConfig | None = None) -> None:
        if not use_gpu:
            # Actors share the machine's cores with decoders: one thread each, and the same sums on every machine.
            torch.set_num_threads(1)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        with local_weights(uri) as path:
            if architecture is None:
                model = load_model(path)
            else:
                model = build_model(architecture)
                load_weights(model, path)
        assert isinstance(model, Hiera)  # checked by `find_classifier`
        self.model = model.to(self.device).eval()
        self._score = Probabilities(self.model, AUTOCAST[precision])

    @torch.inference_mode()
    def probabilities(self, video: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Softmax scores ``[B, classes]`` of uint8 frames ``[B, T, H, W, 3]``."""
        frames = torch.from_numpy(np.require(video, np.uint8, ["C", "W"])).to(self.device)
        return np.asarray(self._score(frames).cpu().numpy(), np.float32)


class ScoreVideos:
    """A Ray Data stage: clips → class numbers and scores; the model stays loaded in the actor."""

    def __init__(
        self, weights: ClassifierWeights, precision: Precision, use_gpu: bool, keep: tuple[str, ...], top_k: int
    ) -> None:
        self.classifier = Classifier(weights.place, precision, use_gpu, weights.architecture)
        self.keep = keep
        self.top_k = top_k

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        """``video`` uint8 ``[B, T, H, W, 3]`` → ``classes`` and ``scores``, each ``[B, top_k]``, best first."""
        probabilities = self.classifier.probabilities(batch["video"])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top_k]
        scores = np.take_along_axis(probabilities, best, axis=1)
        kept = {name: pa.array(batch[name]) for name in self.keep}
        return pa.table({**kept, "classes": pa.array(list(best)), "scores": pa.array(list(scores))})


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(PublicWeightsConfig):
    """How many actors score, and how."""

    batch_size: int = 16
    """Clips in one forward pass, from any videos."""
    workers: int | None = None
    """Model actors; each takes a GPU where the cluster has some, else one CPU. Default: all GPUs, or half the CPUs."""
    decode_workers: int | None = None
    """Decoding actors, one CPU each. Default: the CPUs that the models leave."""
    precision: Precision = "fp32"
    """Arithmetic of the model."""

    @property
    def public_weights(self) -> PublicWeightsConfig:
        """What is told of public weights."""
        return PublicWeightsConfig(model=self.model, model_overrides=self.model_overrides, classes=self.classes)

    def __post_init__(self) -> None:
        for key in ("batch_size", "workers", "decode_workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be at least 1; give a larger number")


class Actors(NamedTuple):
    """How many actors of each kind."""

    model: int
    decode: int


def plan_actors(scoring: ScoringConfig) -> Actors:
    """Share the connected cluster between models and decoders.

    On a CPU cluster both get half: they take turns on the cores, so none idles whichever of the two is slower.

    Raises:
        UserError: the cluster has fewer CPUs or GPUs than the actors take; they would wait for ever without an error.
    """
    offered, use_gpu = ray.cluster_resources(), has_gpus()
    cpus, gpus = int(offered.get("CPU", 0)), int(offered.get("GPU", 0))
    model = scoring.workers or (gpus if use_gpu else max(1, cpus // 2))
    decode = scoring.decode_workers or max(1, cpus - (0 if use_gpu else model))
    wanted = {"CPUs": (decode + (0 if use_gpu else model), cpus), "GPUs": (model if use_gpu else 0, gpus)}
    for kind, (number, there) in wanted.items():
        if number > there:
            raise UserError(
                f"workers={model}, decode_workers={decode}: take {number} {kind} and the cluster has {there}; "
                "lower them or add nodes"
            )
    return Actors(model, decode)


def score_videos(
    clips: Dataset, weights: ClassifierWeights, scoring: ScoringConfig, actors: int, keep: tuple[str, ...], top_k: int
) -> Dataset:
    """Add the model's actor pool to a chain whose rows carry ``video``.

    Args:
        actors: how many.
        keep: columns that go along to the scores.
        top_k: classes per row; all of them when it is larger than their number.
    """
    use_gpu = has_gpus()
    return clips.map_batches(
        ScoreVideos,
        fn_constructor_args=(weights, scoring.precision, use_gpu, keep, top_k),
        batch_size=scoring.batch_size,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=0 if use_gpu else 1,
        num_gpus=1 if use_gpu else 0,
        **ACTOR_RETRIES,
    )


def _class_names(init: str, metadata: Mapping[str, str], num_classes: int) -> tuple[str, ...]:
    if "classes" not in metadata:
        return tuple(f"class {index}" for index in range(num_classes))
    names = tuple(json.loads(metadata["classes"]))
    if len(names) != num_classes:
        raise UserError(
            f"init={init}: names {len(names)} classes for {num_classes} logits; fine-tune again with its class list"
        )
    return names
