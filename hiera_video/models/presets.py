"""The named models: the paper's (arXiv 2306.00989, Tab. 2; public names), and small ones for demo and tests.

Each has a masked autoencoder of the same name, prefixed with `mae_`.
"""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from hiera_video.models.config import HieraConfig, MaskedAutoencoderConfig, ModelConfig, replace
from hiera_video.models.decoder import Decoder
from hiera_video.models.hiera import Hiera, HieraEncoder
from hiera_video.models.masked_autoencoder import MaskedAutoencoder

_VIDEO: dict[str, Any] = {
    "q_stride": (1, 2, 2),
    "mask_unit_size": (1, 8, 8),
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "sep_pos_embed": True,
}
_WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "num_heads": 1, "stages": (1, 2, 7, 2)},
    "small": {"embed_dim": 96, "num_heads": 1, "stages": (1, 2, 11, 2)},
    "base": {"embed_dim": 96, "num_heads": 1, "stages": (2, 3, 16, 3)},
    "base_plus": {"embed_dim": 112, "num_heads": 2, "stages": (2, 3, 16, 3)},
    "large": {"embed_dim": 144, "num_heads": 2, "stages": (2, 6, 36, 4)},
    "huge": {"embed_dim": 256, "num_heads": 4, "stages": (2, 6, 36, 4)},
}
# ImageNet's mean and deviation (H: examples/inference.ipynb), Pillow's bicubic (MAE: util/datasets.py).
_IMAGE: dict[str, Any] = {
    "pixel_mean": (0.485, 0.456, 0.406),
    "pixel_std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
}
_DEMO: dict[str, Any] = {**_VIDEO, "input_size": (16, 96, 96), "embed_dim": 24, "stages": (1, 1, 3, 1)}
_TEST: dict[str, Any] = {**_VIDEO, "input_size": (8, 64, 64), "embed_dim": 8, "stages": (1, 1, 2, 1)}
_DEMO_IMAGE: dict[str, Any] = {**_IMAGE, "input_size": (128, 128), "embed_dim": 24, "stages": (1, 1, 3, 1)}
_TEST_IMAGE: dict[str, Any] = {**_IMAGE, "input_size": (96, 96), "embed_dim": 8, "stages": (1, 1, 2, 1)}
_DEMO_DECODER: dict[str, Any] = {"decoder_embed_dim": 64, "decoder_depth": 2, "decoder_num_heads": 4}
_TEST_DECODER: dict[str, Any] = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


_IMAGE_ENCODERS = {f"hiera_{size}_224": {**_IMAGE, **widths} for size, widths in _WIDTHS.items()}
_VIDEO_ENCODERS = {
    f"hiera_{size}_16x224": {"input_size": (16, 224, 224), **_VIDEO, **_WIDTHS[size]}
    for size in ("base", "base_plus", "large", "huge")
}

PRESETS: dict[str, ModelConfig] = {
    **{name: HieraConfig(**encoder) for name, encoder in _IMAGE_ENCODERS.items()},
    **{name: HieraConfig(num_classes=400, **encoder) for name, encoder in _VIDEO_ENCODERS.items()},
    "hiera_demo_16x96": HieraConfig(num_classes=8, **_DEMO),
    "hiera_test_8x64": HieraConfig(num_classes=8, **_TEST),
    "hiera_demo_128": HieraConfig(num_classes=8, **_DEMO_IMAGE),
    "hiera_test_96": HieraConfig(num_classes=8, **_TEST_IMAGE),
    **{f"mae_{name}": MaskedAutoencoderConfig(**encoder) for name, encoder in _IMAGE_ENCODERS.items()},
    **{f"mae_{name}": MaskedAutoencoderConfig(mask_ratio=0.9, **encoder) for name, encoder in _VIDEO_ENCODERS.items()},
    "mae_hiera_demo_16x96": MaskedAutoencoderConfig(mask_ratio=0.9, **_DEMO, **_DEMO_DECODER),
    "mae_hiera_test_8x64": MaskedAutoencoderConfig(mask_ratio=0.75, **_TEST, **_TEST_DECODER),
    "mae_hiera_demo_128": MaskedAutoencoderConfig(**_DEMO_IMAGE, **_DEMO_DECODER),
    "mae_hiera_test_96": MaskedAutoencoderConfig(**_TEST_IMAGE, **_TEST_DECODER),
}


def model_names() -> list[str]:
    """Every preset, classifiers first."""
    return list(PRESETS)


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """The model config of a preset, with overrides by the public argument names.

    Raises:
        ValueError: an unknown preset (the error lists the nearest), an unknown key, or a value against its rule.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.3) or model_names()[:3]
        raise ValueError(f"model={name}: no such preset; did you mean {', '.join(near)}? model_names() lists them all")
    return replace(PRESETS[name], overrides)


def create_model(name: str, **overrides: Any) -> Hiera | MaskedAutoencoder:
    """A preset with fresh weights: a classifier, or a masked autoencoder for names that begin with `mae_`.

    Args:
        name: one of `model_names()`.
        overrides: `input_size`, `num_classes`, `embed_dim`, `stages`, `drop_path_rate`, `decoder_depth`, ...

    Raises:
        ValueError: an unknown preset (the error lists the nearest), an unknown key, or a value against its rule.
    """
    return build_model(model_config(name, **overrides))


def create_backbone(name: str, **overrides: Any) -> HieraEncoder:
    """A preset's encoder alone: its forward pass gives the four stages' maps.

    Raises:
        ValueError: as `create_model`.
    """
    return HieraEncoder(model_config(name, **overrides))


def build_model(config: ModelConfig) -> Hiera | MaskedAutoencoder:
    """The model that a model config describes."""
    return Hiera(config) if isinstance(config, HieraConfig) else MaskedAutoencoder(config)


def set_activation_checkpointing(model: nn.Module, enabled: bool = True) -> None:
    """Trade time for memory: recompute every block's activations in the backward pass."""
    for module in model.modules():
        if isinstance(module, HieraEncoder | Decoder):
            module.recompute_activations = enabled
