"""`model` and `model_overrides`: from a preset's name and changes to the model config; mistakes are named by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hiera_video.models.config import EncoderConfig, HieraConfig, MaskedAutoencoderConfig
from hiera_video.models.presets import model_config
from jobs.core.errors import UserError
from pipeline.media import Media
from pipeline.sampling import ViewConfig
from pipeline.shards.reader import PreparedSet
from pipeline.storage.errors import first_line

OVERRIDES = "model_overrides"


def overridden_config(model: str, overrides: Mapping[str, Any], **fixed: Any) -> HieraConfig | MaskedAutoencoderConfig:
    """The architecture of a preset, changed by `model_overrides` and by values that other keys decide (``fixed``).

    Raises:
        ValueError: no such preset, an unknown override, a value of the wrong type or against its rule; the message
            begins with the dotted key and the value.
    """
    preset = model_config(model)
    for key in overrides.keys() & fixed.keys():
        raise ValueError(f"{OVERRIDES}.{key}={overrides[key]}: has its own key; write {key}={overrides[key]}")
    values = typed_overrides(type(preset), overrides)
    try:
        return model_config(model, **values, **fixed)
    except ValueError as error:
        key = str(error).partition("=")[0]
        known = {field.name for field in dataclasses.fields(preset)}
        raise ValueError(f"{OVERRIDES}.{error}" if key in known - set(fixed) else str(error)) from error


def view_config(model: EncoderConfig, **draw: Any) -> ViewConfig:
    """Views in the shape that a model takes: of an image one frame, resized as its config has it.

    Args:
        draw: how views are drawn (`DrawConfig`).
    """
    size = model.input_size[-1]
    if model.is_video:
        return ViewConfig(num_frames=model.input_size[0], size=size, **draw)
    crop_share = model.test_crop_share
    return ViewConfig(
        num_frames=1, size=size, media="image", interpolation=model.interpolation, crop_share=crop_share, **draw
    )


def refuse_other_media(model: EncoderConfig, prepared: PreparedSet) -> None:
    """`UserError` for a set of images and a model of videos, or the other way round."""
    wanted: Media = "video" if model.is_video else "image"
    if prepared.media != wanted:
        presets = "`..._16x224`" if prepared.media == "video" else "`..._224`"
        size = "x".join(map(str, model.input_size))
        raise UserError(
            f"data={prepared.uri}: holds {prepared.media}s, and the model takes {wanted}s (input_size={size}); use a "
            f"model of {prepared.media}s ({presets}), or a set of {wanted}s (prepare with media={wanted})"
        )


def typed_overrides(config_class: type, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the architecture's fields have them: OmegaConf converts and refuses as for every other key.

    Raises:
        ValueError: no such field, or a value of another type.
    """
    tree = OmegaConf.structured(config_class)
    OmegaConf.set_readonly(tree, False)
    for key, value in overrides.items():
        if "${" in str(value):  # it would stay a text, whatever the field's type
            raise ValueError(f"{OVERRIDES}.{key}={value}: must be a value, not a reference; write it out")
        try:
            OmegaConf.update(tree, key, value, merge=False)
        except OmegaConfBaseException as error:
            known = ", ".join(field.name for field in dataclasses.fields(config_class))
            raise ValueError(f"{OVERRIDES}.{key}={value}: {first_line(error)}; known: {known}") from error
    converted = cast(dict[str, Any], OmegaConf.to_container(tree))
    return {key: tuple(value) if isinstance(value := converted[key], list) else value for key in overrides}
