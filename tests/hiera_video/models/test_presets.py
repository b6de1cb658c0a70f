"""The named models: each runs, and is what the public code calls by that name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hiera_video.models.presets import (
    create_backbone,
    create_model,
    model_config,
    model_names,
)
from tests.support.official import (
    PUBLIC_PRESETS,
    preset_arguments,
)
from tests.support.small_models import loss_of


def shrunk(name: str, **options: Any) -> nn.Module:
    size = (6, 64, 64) if "16x" in name else (96, 64)
    options |= {"mask_ratio": 0.4, "decoder_depth": 1} if name.startswith("mae_") else {}
    heads = 4 if "huge" in name else 2 if "plus" in name or "large" in name else 1
    return create_model(name, input_size=size, stages=(1, 1, 2, 1), embed_dim=16 * heads, **options)


@pytest.mark.parametrize("name", model_names())
def test_every_preset_runs_forward_and_backward(name: str) -> None:
    model = create_model(name) if "test" in name else shrunk(name, drop_path_rate=0.1)
    loss_of(model(torch.randn(2, 3, *model.config.input_size))).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", PUBLIC_PRESETS)
def test_preset_has_the_public_arguments(name: str) -> None:
    config = model_config(name)
    for key, value in preset_arguments(name).items():
        if hasattr(config, key):
            assert getattr(config, key) == value, key


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"model=hiera_bse_16x224.*did you mean hiera_base_16x224.*model_names"):
        create_model("hiera_bse_16x224")
    with pytest.raises(ValueError, match="no such preset"):
        create_backbone("resnet50")
