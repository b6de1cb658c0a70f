"""Parameter groups, learning rates, and the settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiera_video.flat_optimizer import FlatAdamW, FlatSGD
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
    """Linear in the batch, which counts videos, or views where that is chosen."""
    videos, views = OptimizerConfig(), OptimizerConfig(batch_counts="views")
    for config, rates in ((videos, (8e-4, 8e-4, 1e-4)), (views, (8e-4, 32e-4, 2e-4))):
        batches = ((512, 1), (2048, 4), (128, 2))
        scaled = [scaled_learning_rate(config, global_batch, repeats) for global_batch, repeats in batches]
        assert scaled == pytest.approx(rates)


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


@pytest.mark.parametrize("name", ["hiera_test_96", "mae_hiera_test_96", "hiera_test_8x64"])
@pytest.mark.parametrize("layer_decay", [0.85, 1.0])
def test_positions_may_have_a_rate_of_their_own(name: str, layer_decay: float) -> None:
    """Paper §A.2, Huge at 448: all other parameters keep the rate that the layer rule gives them."""
    model = create_model(name)

    def scales(**keys: float) -> dict[str, float]:
        of = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
        groups = parameter_groups(model, OptimizerConfig(layer_decay=layer_decay, **keys))
        return {of[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}

    rule, own = scales(), scales(layer_decay_positions=0.5)
    tables = {key for key in rule if key.startswith("encoder.pos_embed")}
    assert tables
    assert own == rule | dict.fromkeys(tables, 0.5)
    groups = parameter_groups(model, OptimizerConfig(layer_decay=layer_decay, layer_decay_positions=0.5))
    assert (groups[0]["name"], groups[0]["weight_decay"], groups[0]["lr"]) == ("positions_no_decay", 0.0, 4e-4)


def test_encoder_positions_norms_and_biases_do_not_decay() -> None:
    model = create_model("mae_hiera_test_8x64")
    groups = parameter_groups(model, OptimizerConfig())
    assert [group["name"].rpartition("_")[2] for group in groups] == ["decay", "decay"]
    free = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    tables = list(model.encoder.pos_embed.parameters())
    assert {id(p) for p in (*tables, model.encoder.blocks[0].norm1.weight, model.decoder.pred.bias)} <= free
    assert not {id(p) for p in (model.decoder.pos_embed, model.decoder.mask_token, model.decoder.pred.weight)} & free


@pytest.mark.parametrize(("name", "kind"), [("adamw", FlatAdamW), ("sgd", FlatSGD)])
def test_all_parameters_are_one_group_with_rates_of_their_own(name: Any, kind: type) -> None:
    model = create_model("hiera_test_8x64")
    config = OptimizerConfig(name=name, layer_decay=0.5)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, kind)
    set_learning_rate(optimizer, 0.125)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.125
    assert {rates.scale for rates in optimizer.rates.values()} == {0.5**n for n in range(7)}
    expected = [parameter for group in parameter_groups(model, config) for parameter in group["params"]]
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]


def test_sgd_has_the_momentum_of_nesterov() -> None:
    """Two steps with gradient 1 of momentum 0.9: Nesterov takes 1.9 and 2.71, the plain form 1 and 1.9."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = build_optimizer(model, OptimizerConfig(name="sgd", learning_rate=1.0, weight_decay=0.0))
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert float(model.weight.detach()) == pytest.approx(-4.61)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate=0.0: must be positive"),
        (OptimizerConfig, {"layer_decay": 1.5}, r"layer_decay=1.5: must lie in \(0, 1\]"),
        (OptimizerConfig, {"layer_decay_positions": 0.0}, r"layer_decay_positions=0.0: must lie in \(0, 1\]"),
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
