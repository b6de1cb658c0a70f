"""Parameter groups, learning rates, and the settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.optimization import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    scaled_learning_rate,
    set_learning_rate,
)


def test_learning_rate_scales_with_the_batch() -> None:
    assert scaled_learning_rate(OptimizerConfig(learning_rate=8e-4), 512) == 8e-4
    assert scaled_learning_rate(OptimizerConfig(learning_rate=8e-4), 64) == 1e-4


def test_schedule_warms_up_then_follows_a_cosine() -> None:
    def rate(step: int) -> float:
        return learning_rate_at(step, total_steps=110, warmup_steps=10, peak=1.0, final=0.1)

    assert [rate(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert rate(10) == 1.0
    assert rate(60) == pytest.approx(0.55)
    assert rate(110) == rate(500) == pytest.approx(0.1)
    assert learning_rate_at(0, total_steps=1, warmup_steps=0, peak=1.0) == 1.0


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
def test_every_parameter_lies_in_one_group(name: str) -> None:
    model = create_model(name)
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        matrices = {parameter.ndim > 1 for parameter in group["params"]}
        assert group["weight_decay"] == 0.0 or matrices == {True}


def test_layer_decay_falls_towards_the_input() -> None:
    model = create_model("hiera_test_8x64")
    scales = {}
    for group in parameter_groups(model, OptimizerConfig(layer_decay=0.5, learning_rate=2.0)):
        scales |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
        assert group["lr"] == 2.0 * group["lr_scale"]
    assert scales[id(model.head.weight)] == scales[id(model.norm.weight)] == 1.0
    assert scales[id(model.encoder.blocks[4].mlp.fc1.weight)] == 0.5
    assert scales[id(model.encoder.blocks[0].norm1.bias)] == 0.5**5
    assert scales[id(model.encoder.pos_embed.spatial)] == scales[id(model.encoder.patch_embed.weight)] == 0.5**6


def test_positions_norms_and_biases_do_not_decay() -> None:
    model = create_model("mae_hiera_test_8x64")
    groups = parameter_groups(model, OptimizerConfig())
    assert [group["name"].rpartition("_")[2] for group in groups] == ["decay", "decay"]
    free = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    tables = (model.encoder.pos_embed.spatial, model.decoder.pos_embed, model.decoder.mask_token)
    assert {id(p) for p in (*tables, model.encoder.blocks[0].norm1.weight, model.decoder.pred.bias)} <= free


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizer_steps_at_the_set_rate(name: str, kind: type) -> None:
    model = create_model("hiera_test_8x64")
    optimizer = build_optimizer(model, OptimizerConfig(name=name, layer_decay=0.5))
    assert isinstance(optimizer, kind)
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125 * 0.5**n for n in range(7)}


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate=0.0: must be positive"),
        (OptimizerConfig, {"layer_decay": 1.5}, r"layer_decay=1.5: must lie in \(0, 1\]"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)"),
        (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay=-1.0: must not be negative"),
        (OptimizerConfig, {"clip_gradient_norm": -1.0}, "clip_gradient_norm=-1.0"),
        (ScheduleConfig, {"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        (ScheduleConfig, {"final_learning_rate": -1.0}, "final_learning_rate=-1.0"),
    ],
)
def test_wrong_settings(config: type, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**arguments)
