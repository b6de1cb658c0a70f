"""Optimisation rules, scores, and the way from frames to input."""

from __future__ import annotations

import pytest
import torch

from hiera_video.augmentation.basic import AugmentConfig, augment, denormalize_video, normalize_video
from hiera_video.metrics.classification import accuracy_per_class, confusion_matrix
from hiera_video.models.presets import create_model
from hiera_video.optimization import (
    OptimizerConfig,
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


def test_confusion() -> None:
    confusion = confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert accuracy_per_class(confusion)[:2].tolist() == [0.5, 0.5]
    assert accuracy_per_class(confusion)[2].isnan()


def test_normalisation_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(2, 4, 16, 16, 3)
    pixels = normalize_video(frames)
    assert pixels.shape == (2, 3, 4, 16, 16)
    assert pixels.is_contiguous()
    expected = (frames.double().movedim(-1, 1) / 255 - 0.45) / 0.225
    torch.testing.assert_close(pixels.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(denormalize_video(pixels), frames)
    assert normalize_video(frames[:, 0]).shape == (2, 3, 16, 16)


def test_flip_follows_its_draws() -> None:
    pixels = torch.randn(3, 3, 2, 4, 5)
    flipped = augment(pixels, AugmentConfig(horizontal_flip=0.5), torch.tensor([0.2, 0.5, 0.49]))
    assert torch.equal(flipped[[0, 2]], pixels[[0, 2]].flip(-1))
    assert torch.equal(flipped[1], pixels[1])
    assert augment(pixels, AugmentConfig(horizontal_flip=0.0)) is pixels
    assert torch.equal(augment(pixels, AugmentConfig(horizontal_flip=1.0)), pixels.flip(-1))
