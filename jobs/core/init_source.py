"""What `init` may name: the output of a run, a `.safetensors` file, an official or Hugging Face `.pth`.

A model of the MLflow registry is such a file too once the driver has fetched it (`jobs.weights.registry`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiera_video.weights.checkpoint_files import read_metadata
from jobs.core.errors import UserError
from jobs.core.holdings import holding, is_registered
from pipeline.storage.files import StorageError, absolute, join, local_copy
from pipeline.storage.records import parse_json

WEIGHTS = "model.safetensors"
BEST_WEIGHTS = "best.safetensors"  # of the checkpoint that was best in validation
HUB_CONFIG = "config.json"  # beside the weights in a folder for a model hub
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
DIGEST_CHARACTERS = 16  # of a weights file's SHA-256
RUN_LINK = "_run_id"  # end of the tags of `links_of`
LICENSE, PUBLIC_LICENSE = "weights_license", "CC-BY-NC-4.0"  # entry of weights that derive from public ones
SAMPLING = "sampling_of_frames"  # key of a weights file: how frames were chosen in training, as JSON
ENCODER = "encoder"  # `part` of an export that left the head out
SHIPPED_CLASSES = {400: "kinetics400"}  # class lists of public weights, by their number of classes


def absolute_init(init: str) -> str:
    """``init`` as an absolute path or URI, which is the same in every process."""
    return init if is_registered(init) else absolute(init)


@contextmanager
def local_weights(init: str) -> Iterator[Path]:
    """A local file with the weights that ``init`` names, while the context lasts.

    Raises:
        UserError: the file is missing.
    """
    uri = init if init.endswith(WEIGHT_FILES) else join(init, WEIGHTS)
    try:
        with local_copy(uri) as path:
            yield path
    except StorageError as error:
        if not error.missing:
            raise UserError(f"init={init}: {error}") from error
        raise UserError(
            f"init={init}: {_without_weights(init)}; give the output of a finished training run, or a file that ends "
            "in .safetensors or .pth"
        ) from error


def _without_weights(init: str) -> str:
    found = holding(init)
    return f"{found}, no {WEIGHTS}" if found.startswith("holds") else found


def initial_metadata(init: str | None) -> dict[str, str]:
    """Metadata of the weights file (`run_id`, `command`, `classes`); empty for files of other origin.

    Raises:
        UserError: the file is missing or damaged.
    """
    if init is None or (init.endswith(WEIGHT_FILES) and not init.endswith(".safetensors")):
        return {}
    with local_weights(init) as path:
        try:
            return read_metadata(path)
        except ValueError as error:
            raise UserError(f"init={init}: {error}; give another file, or the output of a run") from error


def json_entry(init: str, metadata: Mapping[str, str], key: str, kind: type) -> Any:
    """A JSON entry of a weights file's metadata; empty where the file has none.

    Raises:
        UserError: it is damaged.
    """
    try:
        value = parse_json(metadata[key]) if key in metadata else kind()
        if not isinstance(value, kind):
            raise ValueError(f"must be a {kind.__name__}")
    except ValueError as error:
        raise UserError(f"init={init}: its {key} are damaged ({error}); save the weights again") from error
    return value


def class_names(init: str, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in a weights file's metadata.

    Raises:
        UserError: they are damaged.
    """
    names = tuple(json_entry(init, metadata, "classes", list))
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"init={init}: its classes are damaged: must be names; save the weights again")
    return names


def links_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Tags that link a run to the run that its weights come from, and to the pretraining of that run; the license of
    public weights, and of what derives from them."""
    links = {"pretrain_run_id": metadata.get("pretrain_run_id"), LICENSE: license_of(metadata)}
    if "command" not in metadata:  # a registered copy, which carries the link of the original
        links["finetune_run_id"] = metadata.get("finetune_run_id")
    elif metadata.get("run_id"):
        links[metadata["command"] + RUN_LINK] = metadata["run_id"]
    return {key: run_id for key, run_id in links.items() if run_id}


def license_of(metadata: Mapping[str, str]) -> str | None:
    """Of public weights, whose files carry no model config, and of those that derive from them."""
    return metadata.get(LICENSE) if "config_class" in metadata else PUBLIC_LICENSE
