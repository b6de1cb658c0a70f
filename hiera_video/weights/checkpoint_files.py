"""Weights on disk: safetensors with the model config inside, and the public checkpoints.

Public `.pth` files are read with `weights_only=True`: no code in them runs. Every defect of a file raises a
`ValueError` that names the file, the rule and the remedy.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hiera_video.models.config import HieraConfig, MaskedAutoencoderConfig, ModelConfig, replace
from hiera_video.models.hiera import Hiera
from hiera_video.models.masked_autoencoder import MaskedAutoencoder
from hiera_video.models.presets import build_model
from hiera_video.weights.key_mapping import (
    from_huggingface,
    from_official,
    is_huggingface,
    is_official,
    to_official,
)
from hiera_video.weights.pickles import is_in_the_file, refuse_growing
from hiera_video.weights.pos_embed_interpolation import Grid, fit_table, square_grid

logger = logging.getLogger(__name__)

LICENSE_NOTE = (
    "If these are Meta's published weights, or derived from them, their license is CC-BY-NC 4.0: no commercial use."
)
# What PyTorch's reader of pickles without code lets through where one is damaged.
DAMAGED_PICKLE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, struct.error)
_OTHER_MODEL = "save the model again with save_model"
_CONFIG_CLASSES = {"HieraConfig": HieraConfig, "MaskedAutoencoderConfig": MaskedAutoencoderConfig}
_FORMAT = "hiera_video"
# What weights do not show by their names and shapes. Between kinds `q_pool` may differ: pretraining pools
# once less (paper §A).
_SETTINGS_WITHOUT_SHAPES = (
    "num_heads", "head_mul", "mask_unit_attn", "mask_unit_size", "q_stride", "patch_stride", "patch_padding",
)  # fmt: skip
StateDict = dict[str, Tensor]


class LoadReport(NamedTuple):
    """What happened to each parameter, by this package's names."""

    taken: list[str]
    """Filled from the file."""
    new: list[str]
    """Left as initialised, since the file has no tensor that fits."""
    unused: list[str]
    """In the file, but not in the model (a decoder, another head)."""


class Weights(NamedTuple):
    """A file's tensors under this package's names, and its model config if it contains one."""

    tensors: StateDict
    config: ModelConfig | None


def save_model(path: str | Path, model: nn.Module, extra_metadata: Mapping[str, str] | None = None) -> None:
    """Write `.safetensors` with the model config in its metadata; the file appears complete or not at all.

    Raises:
        ValueError: not a model of this package.
    """
    config = getattr(model, "config", None)
    if type(config).__name__ not in _CONFIG_CLASSES:
        raise ValueError(f"{type(model).__name__} cannot be saved: must be a model from create_model; unwrap it first")
    metadata = {
        "format": _FORMAT,
        "config_class": type(config).__name__,
        "config": json.dumps(dataclasses.asdict(config)),  # type: ignore[arg-type]
        **(extra_metadata or {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = Path(f"{path}.partial-{os.getpid()}")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a `.safetensors` file.

    Raises:
        ValueError: a missing or damaged file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def load_model(path: str | Path, **overrides: Any) -> Hiera | MaskedAutoencoder:
    """The model that `save_model` wrote, with its weights.

    Args:
        overrides: changes to the model config, for instance `input_size`; position tables are interpolated.

    Raises:
        ValueError: a missing or damaged file, one without a model config, or weights that do not fit.
    """
    weights = read_weights(path)
    if weights.config is None:
        raise ValueError(f"{path}: contains no model config; build the model with create_model and use load_weights")
    refuse_other_shapes(weights.config, weights.tensors, str(path))
    return _filled(build_model(replace(weights.config, overrides)), weights, str(path))


def filled_model(config: ModelConfig, tensors: StateDict, source: str) -> Hiera | MaskedAutoencoder:
    """The model of a config with exactly these tensors.

    Raises:
        ValueError: the config describes a model of other tensors; no memory is taken for it.
    """
    refuse_other_shapes(config, tensors, source)
    return _filled(build_model(config), Weights(tensors, config), source)


def refuse_other_shapes(config: ModelConfig, tensors: StateDict, source: str, prefix: str = "") -> None:
    """A config can claim terabytes in a few bytes; tensors are in the file, so they are believed.

    The model is built without memory for its parameters, once its depth and its grids are known to be the file's.

    Args:
        prefix: of the names of the tensors that are compared; a file may hold a model's encoder alone.

    Raises:
        ValueError: the config describes a model of other tensors.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    depths = sum(config.stages), getattr(config, "decoder_depth", 0)
    grids = {
        name: math.prod(grid)
        for name, grid in _position_grids(config, config.input_size).items()
        if name.startswith(prefix)
        and (name == "decoder.pos_embed" or (name == "encoder.pos_embed.table") != config.sep_pos_embed)
    }
    odd = [name for name, tokens in grids.items() if name not in tensors or list(tensors[name].shape[1:2]) != [tokens]]
    whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if max(depths) > len(tensors) or odd or whole:
        wrong = f"{(odd or whole)[0]} is not the model config's" if odd or whole else "fewer tensors than blocks"
        raise ValueError(f"{source}: its tensors are of another model than its model config: {wrong}; {_OTHER_MODEL}")
    try:
        with torch.device("meta"):
            built = build_model(config).state_dict()
    except (RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
        raise ValueError(f"{source}: its model config is of no model ({error}); {_OTHER_MODEL}") from error
    expected = {name: tensor for name, tensor in built.items() if name.startswith(prefix)}
    _refuse_mismatch(expected, tensors, source)


def _filled(model: Hiera | MaskedAutoencoder, weights: Weights, source: str) -> Hiera | MaskedAutoencoder:
    _load_strictly(model, weights, source)
    return model


def load_weights(model: Hiera | MaskedAutoencoder, path: str | Path) -> None:
    """Fill a model from a file of the same kind, strictly: of this package, public, or Hugging Face.

    Raises:
        ValueError: a missing or damaged file, another preset's weights, missing or unexpected tensors.
    """
    weights = read_weights(path)
    same_kind = () if type(weights.config) is not type(model.config) else ("q_pool", "decoder_num_heads")
    _refuse_other_settings(model, weights, str(path), same_kind)
    _load_strictly(model, weights, str(path))


def load_official(
    model: Hiera | MaskedAutoencoder,
    state_dict: Mapping[str, Any],
    source_input_size: tuple[int, ...] | None = None,
) -> None:
    """Fill a model from the public code's flat names, strictly; position tables of another size are interpolated.

    Args:
        state_dict: tensors by name, or the public file's ``{"model_state": ...}``.
        source_input_size: the input size of the weights; square in space when not given.

    Raises:
        ValueError: tensors that are missing, unexpected or of another shape (another preset).
    """
    tensors = from_official(state_dict.get("model_state", state_dict))
    _load_strictly(model, Weights(tensors, None), "state_dict", source_input_size)
    logger.warning(LICENSE_NOTE)


def official_state_dict(model: nn.Module) -> StateDict:
    """The model's weights under the public code's flat names."""
    return to_official(model.state_dict())


def load_into_classifier(model: Hiera, path: str | Path, *, new_blocks: int = 0, new_head: bool = False) -> LoadReport:
    """Start a classifier from any weights that fit: pretraining's encoder, or another classifier.

    A head for another number of classes stays new, and with ``new_head`` any head; so do the last ``new_blocks``
    blocks of the encoder (Zhang et al., arXiv 2006.05987, sec. 4). Position tables are interpolated.

    Raises:
        ValueError: a missing or damaged file, an encoder of another preset, or more new blocks than the encoder has.
    """
    return fill_classifier(model, read_weights(path), str(path), new_blocks=new_blocks, new_head=new_head)


def fill_classifier(
    model: Hiera, weights: Weights, source: str, *, new_blocks: int = 0, new_head: bool = False
) -> LoadReport:
    """`load_into_classifier` from weights in memory."""
    own = model.state_dict()
    fitted = _fit_positions(model, weights, None)
    for name in ("head.weight", "head.bias"):
        if name in fitted and (new_head or fitted[name].shape != own[name].shape):
            del fitted[name]
    _refuse_other_settings(model, weights, source)
    _refuse_mismatch(
        {name: tensor for name, tensor in own.items() if name in fitted or name.startswith("encoder.")},
        {name: tensor for name, tensor in fitted.items() if name in own or name.startswith("encoder.")},
        source,
    )
    left_new = _last_blocks(model, new_blocks)
    taken = [name for name in own if name in fitted and not name.startswith(left_new)]
    model.load_state_dict({name: fitted[name] for name in taken}, strict=False)
    unused = sorted(set(weights.tensors) - set(taken))
    return LoadReport(taken, [name for name in own if name not in taken], unused)


def _last_blocks(model: Hiera, count: int) -> tuple[str, ...]:
    """How the names of the last blocks' parameters begin."""
    depth = len(model.encoder.blocks)
    if not 0 <= count <= depth:
        raise ValueError(f"new_blocks={count}: the encoder has {depth} blocks; use 0 to {depth}")
    return tuple(f"encoder.blocks.{number}." for number in range(depth - count, depth))


def read_weights(path: str | Path) -> Weights:
    """Any supported file as tensors under this package's names; runs no code from the file.

    Raises:
        ValueError: a missing, damaged or foreign file.
    """
    in_safetensors = str(path).endswith(".safetensors")
    metadata = read_metadata(path) if in_safetensors else {}
    tensors = _read_safetensors(path) if in_safetensors else _read_pickle(path)
    if metadata.get("format") == _FORMAT:
        return Weights(tensors, stored_config(path, metadata))
    for is_theirs, renamed in ((is_official, from_official), (is_huggingface, from_huggingface)):
        if is_theirs(tensors):
            logger.warning(LICENSE_NOTE)
            return Weights(renamed(tensors), None)
    raise ValueError(
        f"{path}: parameter names ({', '.join(list(tensors)[:3]) or 'none'} ...) must be this package's, the public "
        "code's or Hugging Face Hiera's; give a Hiera checkpoint"
    )


def _read_safetensors(path: str | Path) -> StateDict:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: str | Path) -> StateDict:
    try:
        refuse_growing(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to execute the pickle
        reason = ValueError("damaged, or a pickle of more than tensors, which is never executed")
        raise _unreadable(path, reason) from error
    except (*DAMAGED_PICKLE, RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    for key in ("model_state", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: must contain tensors by name; give a file like the public {{'model_state': ...}}")
    for name, tensor in content.items():
        if not is_in_the_file(tensor):
            raise ValueError(
                f"{path}: {str(name)[:60]} claims more values than the file holds; give a plain checkpoint"
            )
    return dict(content)


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return ValueError(f"{path}: weights cannot be read ({reason}); give a complete .safetensors or .pth file")


def stored_config(path: str | Path, metadata: Mapping[str, str]) -> ModelConfig:
    """The model config in the metadata of a file of this package.

    Raises:
        ValueError: it is damaged, or describes no model.
    """
    try:
        config_class = _CONFIG_CLASSES[metadata["config_class"]]
        values = json.loads(metadata["config"])
        if not isinstance(values, dict):
            raise ValueError(f"config={values}: must be a JSON object")
        _refuse_other_types(config_class(), values)
        return replace(config_class(), values)
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        remedy = "save the model again with save_model"
        raise ValueError(f"{path}: its model config is damaged ({error}); {remedy}") from error


def _refuse_other_types(default: ModelConfig, values: Mapping[str, Any]) -> None:
    """Each value has the type of its default: tuples as lists, whole numbers also where there are fractions."""
    for key, value in values.items():
        own = getattr(default, key, value)
        items = (
            [(own[0], item) for item in value] if isinstance(own, tuple) and isinstance(value, list) else [(own, value)]
        )
        for expected, found in items:
            if type(found) is not type(expected) and (type(found), type(expected)) != (int, float):
                raise ValueError(f"{key}={str(value)[:40]}: must be like {own}")


def _load_strictly(
    model: Hiera | MaskedAutoencoder, weights: Weights, source: str, source_input_size: tuple[int, ...] | None = None
) -> None:
    fitted = _fit_positions(model, weights, source_input_size)
    _refuse_mismatch(model.state_dict(), fitted, source)
    model.load_state_dict(fitted)


def _refuse_other_settings(
    model: Hiera | MaskedAutoencoder, weights: Weights, source: str, more: tuple[str, ...] = ()
) -> None:
    """Weights of another model with the same shapes would load, and compute something else."""
    if weights.config is None:
        return
    _refuse_other_normalisation(weights.config, model.config, source)
    problems = [
        f"{name}={theirs} in the file, {name}={ours} in the model"
        for name in (*_SETTINGS_WITHOUT_SHAPES, *more)
        if (theirs := getattr(weights.config, name, None)) != (ours := getattr(model.config, name, None))
    ]
    if problems:
        raise ValueError(
            f"{source}: weights of another model: {'; '.join(problems)}; create the preset (and options) that the "
            "weights were made for"
        )


def _refuse_other_normalisation(theirs: ModelConfig, ours: ModelConfig, source: str) -> None:
    if (theirs.pixel_mean, theirs.pixel_std) != (ours.pixel_mean, ours.pixel_std):
        raise ValueError(
            f"{source}: weights for pixels of another normalisation: pixel_mean={list(theirs.pixel_mean)} "
            f"pixel_std={list(theirs.pixel_std)}, the views of this model have {list(ours.pixel_mean)} and "
            f"{list(ours.pixel_std)}; give the model the file's pixel_mean and pixel_std, or take other weights"
        )


def _refuse_mismatch(own: StateDict, given: StateDict, source: str) -> None:
    """One error for weights of another model, with the first differences."""
    shapes = [
        f"{name} has shape {list(tensor.shape)}, expected {list(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    missing = [f"{name} is missing" for name in own if name not in given]
    problems = shapes + missing + [f"{name} is unexpected" for name in given if name not in own]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{source}: weights of another model: {'; '.join(problems[:3])}{more}; "
            "create the preset (and options) that the weights were made for"
        )


def _fit_positions(
    model: Hiera | MaskedAutoencoder, weights: Weights, source_input_size: tuple[int, ...] | None
) -> StateDict:
    """The tensors with position tables fitted to the model's input size, where widths agree."""
    own, fitted = model.state_dict(), dict(weights.tensors)
    if source_input_size is None and weights.config is not None:
        source_input_size = weights.config.input_size
    for name, target in _position_grids(model.config, model.config.input_size).items():
        table = fitted.get(name)
        if table is None or name not in own or table.shape == own[name].shape or table.shape[-1] != own[name].shape[-1]:
            continue
        source = _source_grid(name, weights, model.config, source_input_size)
        fitted[name] = fit_table(table, source, target)
    return fitted


def _position_grids(config: ModelConfig, input_size: tuple[int, ...]) -> dict[str, Grid]:
    """Token grid of every position table of a model for an input size."""
    tokens = tuple(size // stride for size, stride in zip(input_size, config.patch_stride, strict=True))
    time, height, width = _three_axes(tokens)
    grids = {
        "encoder.pos_embed.table": (time, height, width),
        "encoder.pos_embed.spatial": (1, height, width),
        "encoder.pos_embed.temporal": (time, 1, 1),
    }
    if isinstance(config, MaskedAutoencoderConfig):
        pooled = _three_axes(tuple(stride**config.q_pool for stride in config.q_stride))
        grids["decoder.pos_embed"] = (time // pooled[0], height // pooled[1], width // pooled[2])
    return grids


def _source_grid(name: str, weights: Weights, config: ModelConfig, input_size: tuple[int, ...] | None) -> Grid:
    """Token grid that a table was trained for."""
    if input_size is not None:
        return _position_grids(config, input_size)[name]
    tokens = weights.tensors[name].shape[1]
    if name == "encoder.pos_embed.temporal":
        return tokens, 1, 1
    temporal = weights.tensors.get("encoder.pos_embed.temporal")
    in_time = name == "decoder.pos_embed" and temporal is not None
    return square_grid(tokens, temporal.shape[1] if in_time and temporal is not None else 1)


def _three_axes(axes: tuple[int, ...]) -> Grid:
    return (1, *axes) if len(axes) == 2 else axes  # type: ignore[return-value]
